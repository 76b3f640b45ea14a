"""The official `openai` client against a running server: chat, streams, choices, log probabilities, structured output, models,
embeddings, errors.

    cargo run --release --features serve --example serve -- --port 8080
    pip install openai && python tests/serve/openai_client.py http://127.0.0.1:8080

The built-in model cannot write JSON. One that can, and an adapter of it:

    cargo test --features serve --test serve folders_for_clients -- --ignored --nocapture   # prints a folder
    cargo run --release --features serve --example serve -- --model FOLDER --adapter tuned=FOLDER/adapter

With a key: HAPLOVL_API_KEY in the environment of both. Not a part of `cargo test`.
"""

import base64
import json
import os
import sys
import urllib.request
from typing import Literal, Optional

import openai
import pydantic

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
key = os.environ.get("HAPLOVL_API_KEY", "none")
client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
checks = 0


def check(condition, what=""):
    global checks
    checks += 1
    if not condition:
        raise SystemExit(f"failed: {what}")


def image(number):
    png = urllib.request.urlopen(f"{address}/examples/{number}.png").read()
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}


def ask(question, *images, **options):
    content = [*images, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(**{"model": model, "messages": messages, **options})


def refused(kind, call, param=None, code=None):
    try:
        call()
    except kind as error:
        check(param is None or error.param == param, f"param {error.param}, expected {param}")
        check(code is None or error.code == code, f"code {error.code}, expected {code}")
        check(error.message, "a message")
        return error
    raise SystemExit(f"failed: no {kind.__name__} for {param or code}")


# Models.
model, *adapters = [served.id for served in client.models.list().data]
check(client.models.retrieve(model).id == model, "retrieve")
refused(openai.NotFoundError, lambda: client.models.retrieve("other"), code="model_not_found")
refused(openai.NotFoundError, lambda: ask("x", model="other"), param="model", code="model_not_found")
for adapter in adapters:
    check(client.models.retrieve(adapter).parent == model, "parent")
    adapted = ask("describe the image.", image(4), model=adapter, max_completion_tokens=30)
    check(adapted.model == adapter, adapted)
    check(adapted.choices[0].message.content != ask("describe the image.", image(4)).choices[0].message.content, "adapter")

# Chat.
whole = ask("describe the image.", image(4))
text = whole.choices[0].message.content
check(text and whole.choices[0].finish_reason == "stop", whole)
check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
print(f"answer: {text} ({whole.usage.prompt_tokens} + {whole.usage.completion_tokens} tokens)")

# The same as a stream, with token counts.
chunks = list(ask("describe the image.", image(4), stream=True, stream_options={"include_usage": True}))
check("".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text, "stream")
check(chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices, "usage")
check(chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "cached tokens")

# The client's own helper for streams.
with client.chat.completions.stream(
    model=model, messages=[{"role": "user", "content": [image(4), {"type": "text", "text": "describe the image."}]}]
) as stream:
    for event in stream:
        pass
    check(stream.get_final_completion().choices[0].message.content == text, "stream helper")

# An answer sent back as it came.
messages = [
    {"role": "system", "content": "answer in words."},
    {"role": "user", "content": [image(4), {"type": "text", "text": "how many objects are there?"}]},
]
first = client.chat.completions.create(model=model, messages=messages)
messages += [first.choices[0].message, {"role": "user", "content": "describe the image."}]
check(client.chat.completions.create(model=model, messages=messages).choices[0].message.content, "second turn")

# Choices and seeds.
options = dict(n=3, temperature=1.5, top_p=0.95, seed=7, max_completion_tokens=20, frequency_penalty=0.1, presence_penalty=0.1)
several = ask("describe the image.", image(5), image(6), **options)
check([c.index for c in several.choices] == [0, 1, 2], "choices")
again = ask("describe the image.", image(5), image(6), **options)
check([c.message.content for c in several.choices] == [c.message.content for c in again.choices], "seed")
check(ask("describe the image.", image(5), extra_body={"top_k": 3, "min_p": 0.1}).choices[0].message.content, "top_k")

# Log probabilities.
logprobs = ask("describe the image.", image(4), logprobs=True, top_logprobs=2).choices[0].logprobs.content
check(all(len(t.top_logprobs) == 2 and t.logprob == t.top_logprobs[0].logprob <= 0 for t in logprobs), "logprobs")

# Stop strings.
word = text.split()[2]
check(ask("describe the image.", image(4), stop=[word]).choices[0].message.content == text.split(word)[0], "stop")

# Completions.
completion = client.completions.create(model=model, prompt=["the picture shows", "a large"], max_tokens=4, logprobs=1)
check(len(completion.choices) == 2 and completion.choices[0].logprobs.text_offset[0] == 0, completion)
parts = client.completions.create(model=model, prompt="the picture shows", max_tokens=4, stream=True)
check("".join(p.choices[0].text for p in parts) == completion.choices[0].text, "completion stream")

# Embeddings: the client asks for base64 unless told otherwise.
vectors = client.embeddings.create(model=model, input=["a large red ring", "a small blue star"])
floats = client.embeddings.create(model=model, input="a large red ring", encoding_format="float")
check(max(abs(a - b) for a, b in zip(vectors.data[0].embedding, floats.data[0].embedding)) < 1e-6, "embeddings")
check(abs(sum(x * x for x in floats.data[0].embedding) - 1) < 1e-4, "length 1")
picture = client.embeddings.create(model=model, input=[image(4)], encoding_format="float")
check(len(picture.data[0].embedding) == len(floats.data[0].embedding), "image embedding")

# Structured output.
class Thing(pydantic.BaseModel, extra="forbid"):
    """A thing of a scene."""

    shape: Literal["ring", "star", "circle"]
    size: Optional[Literal["small", "large"]]


class Scene(pydantic.BaseModel, extra="forbid"):
    count: int = pydantic.Field(ge=0, le=12, description="number of objects")
    round: bool
    note: str = pydantic.Field(max_length=20)
    things: list[Thing] = pydantic.Field(min_length=1, max_length=3)


def parse(**options):
    messages = [{"role": "user", "content": [image(4), {"type": "text", "text": "describe the image."}]}]
    return client.chat.completions.parse(model=model, messages=messages, response_format=Scene, **options)


json_schema = {"name": "scene", "schema": Scene.model_json_schema(), "strict": True}
by_schema = {"type": "json_schema", "json_schema": json_schema}
try:
    ask("describe the image.", image(4), response_format={"type": "json_object"}, max_completion_tokens=1)
    writes_json = True
except openai.BadRequestError as error:
    check(error.param == "response_format", error)
    writes_json = False
if writes_json:
    parsed = parse().choices[0].message.parsed
    check(isinstance(parsed, Scene), parsed)
    print(f"parsed: {parsed}")
    sampled = parse(n=4, temperature=1.3, seed=5)
    check(all(isinstance(c.message.parsed, Scene) for c in sampled.choices), sampled)
    check(sampled.choices == parse(n=4, temperature=1.3, seed=5).choices, "seed")
    made = ask("describe the image.", image(4), response_format=by_schema, logprobs=True)
    check(Scene.model_validate_json(made.choices[0].message.content), made)
    check(made.choices[0].logprobs.content, "logprobs")
    chunks = ask("describe the image.", image(4), response_format=by_schema, stream=True)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    check(streamed == made.choices[0].message.content, streamed)
    with client.chat.completions.stream(
        model=model, messages=[{"role": "user", "content": "describe the image."}], response_format=Scene
    ) as stream:
        check(isinstance(stream.get_final_completion().choices[0].message.parsed, Scene), "stream helper")
    for adapter in adapters:
        check(json.loads(ask("x", model=adapter, response_format=by_schema).choices[0].message.content), adapter)
    cut = ask("describe the image.", image(4), response_format=by_schema, max_completion_tokens=3)
    check(cut.choices[0].finish_reason == "length", cut)
    unheld = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "not": {}}}}
    place = "response_format.json_schema.schema.not"
    refused(openai.BadRequestError, lambda: ask("x", response_format=unheld), param=place, code="unsupported_parameter")
else:
    print("this model cannot write JSON: structured output is not checked")

# Errors.
refused(openai.BadRequestError, lambda: ask("x", temperature=-1), param="temperature")
refused(openai.BadRequestError, lambda: ask("x", tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")
refused(openai.BadRequestError, lambda: ask("x", extra_body={"invented": 1}), param="invented", code="unsupported_parameter")
refused(openai.BadRequestError, lambda: ask("x", response_format={"type": "xml"}), param="response_format.type")
far = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
refused(openai.BadRequestError, lambda: ask("x", far), param="messages[0].content[0].image_url.url")
refused(openai.APIStatusError, lambda: ask("x" * (40 << 20)), code="request_too_large")
if key != "none":
    wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, wrong.models.list, code="invalid_api_key")

print(f"all {checks} checks passed with openai {openai.__version__}")
