//! Bodies of requests, as OpenAI's API has them. A field that is not supported is an error that names it.

use std::fmt;
use std::marker::PhantomData;

use haplovl::config::GenerationOverrides;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::fetch::ImageUrls;
use super::json_schema::Schema;

/// A field that is not supported: absent, or a value without effect (null, false, an empty text, list or object).
#[derive(Debug, Default, PartialEq)]
pub struct Unset;

impl<'de> Deserialize<'de> for Unset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnsetVisitor)
    }
}

struct UnsetVisitor;

impl UnsetVisitor {
    fn only<E: Error>(neutral: bool) -> Result<Unset, E> {
        if neutral { Ok(Unset) } else { Err(E::custom("is not supported by this server: leave it out")) }
    }
}

impl<'de> Visitor<'de> for UnsetVisitor {
    type Value = Unset;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }

    fn visit_unit<E: Error>(self) -> Result<Unset, E> {
        Ok(Unset)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Unset, E> {
        Self::only(!value)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Unset, E> {
        Self::only(false)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Unset, E> {
        Self::only(false)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Unset, E> {
        Self::only(false)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Unset, E> {
        Self::only(value.is_empty())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unset, A::Error> {
        Self::only(items.next_element::<IgnoredAny>()?.is_none())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Unset, A::Error> {
        Self::only(fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_none())
    }
}

/// A text, or a list of items.
struct TextOr<T, F>(F, &'static str, PhantomData<T>);

impl<'de, T: Deserialize<'de>, R, F: FnOnce(Either<T>) -> R> Visitor<'de> for TextOr<T, F> {
    type Value = R;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<R, E> {
        Ok(self.0(Either::Text(text.into())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<R, E> {
        Ok(self.0(Either::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<R, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(self.0(Either::List(list)))
    }
}

enum Either<T> {
    Text(String),
    List(Vec<T>),
}

/// One text, or several: stop strings, prompts.
#[derive(Debug, Default)]
pub struct Texts(pub Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = |either| match either {
            Either::Text(text) => Self(vec![text]),
            Either::List(texts) => Self(texts),
        };
        deserializer.deserialize_any(TextOr(texts, "a text or a list of texts", PhantomData))
    }
}

/// A part of a message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: PartKind,
    #[serde(default)]
    pub text: Option<String>,
    #[serde(default)]
    pub image_url: Option<ImageUrl>,
}

impl From<String> for Part {
    fn from(text: String) -> Self {
        Self { kind: PartKind::Text, text: Some(text), image_url: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    Text,
    ImageUrl,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields that are checked when they are read")]
pub struct ImageUrl {
    pub url: String,
    #[serde(default)]
    detail: Option<Detail>,
}

/// The model sees every image at its own resolution.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Detail {
    Auto,
}

/// Content of a message: a text is one part.
#[derive(Debug)]
pub struct Parts(pub Vec<Part>);

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = |either| match either {
            Either::Text(text) => Self(vec![text.into()]),
            Either::List(parts) => Self(parts),
        };
        deserializer.deserialize_any(TextOr(parts, "a text or a list of content parts", PhantomData))
    }
}

/// A message. The fields of answers are taken if they are empty, so that a client can send an answer back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields that are checked when they are read")]
pub struct ChatMessage {
    pub role: ChatRole,
    #[serde(default)]
    pub content: Option<Parts>,
    #[serde(default)]
    name: Unset,
    #[serde(default)]
    refusal: Unset,
    #[serde(default)]
    annotations: Unset,
    #[serde(default)]
    audio: Unset,
    #[serde(default)]
    function_call: Unset,
    #[serde(default)]
    tool_calls: Unset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatRole {
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields that are checked when they are read")]
pub struct StreamOptions {
    #[serde(default)]
    pub include_usage: Option<bool>,
    #[serde(default)]
    include_obfuscation: Unset,
}

/// The form of an answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    pub kind: FormatKind,
    #[serde(default)]
    pub json_schema: Option<NamedSchema>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

/// A schema with fields that do not change what is valid. Answers hold to it, `strict` or not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields that are checked when they are read, or have no effect")]
pub struct NamedSchema {
    name: String,
    #[serde(default)]
    description: Option<String>,
    pub schema: Schema,
    #[serde(default)]
    strict: Option<bool>,
}

/// A request for answers: its own fields, and those that all such requests have.
macro_rules! answer_request {
    ($(#[$docs:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* } unsupported { $($unset:ident,)* }) => {
        $(#[$docs])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "fields that are checked when they are read, or have no effect")]
        pub struct $name {
            $($(#[$attribute])* pub $field: $type,)*
            #[serde(default)]
            pub model: Option<String>,
            #[serde(default)]
            pub n: Option<usize>,
            #[serde(default)]
            pub stream: Option<bool>,
            #[serde(default)]
            pub stream_options: Option<StreamOptions>,
            #[serde(default)]
            temperature: Option<f64>,
            #[serde(default)]
            top_p: Option<f64>,
            #[serde(default)]
            top_k: Option<usize>,
            #[serde(default)]
            min_p: Option<f64>,
            #[serde(default)]
            repetition_penalty: Option<f64>,
            #[serde(default)]
            frequency_penalty: Option<f64>,
            #[serde(default)]
            presence_penalty: Option<f64>,
            #[serde(default)]
            seed: Option<i64>,
            #[serde(default)]
            stop: Option<Texts>,
            #[serde(default)]
            max_tokens: Option<usize>,
            /// The client's name for its own user, which has no effect on answers.
            #[serde(default)]
            user: Option<String>,
            #[serde(default)]
            logit_bias: Unset,
            $(#[serde(default)] $unset: Unset,)*
        }

        impl $name {
            /// What replaces the model's own settings; without a seed, each request has another.
            pub fn overrides(&self) -> GenerationOverrides {
                GenerationOverrides {
                    max_new_tokens: self.max_tokens,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    seed: Some(self.seed.map_or_else(rand::random, i64::cast_unsigned)),
                    stop_strings: self.stop.as_ref().map(|stop| stop.0.clone()).unwrap_or_default(),
                }
            }
        }
    };
}

answer_request! {
    /// Body of `/v1/chat/completions`.
    ChatRequest {
        messages: Vec<ChatMessage>,
        #[serde(default)]
        max_completion_tokens: Option<usize>,
        #[serde(default)]
        logprobs: Option<bool>,
        #[serde(default)]
        top_logprobs: Option<usize>,
        #[serde(default)]
        response_format: Option<ResponseFormat>,
    }
    unsupported {
        audio,
        function_call,
        functions,
        metadata,
        modalities,
        moderation,
        parallel_tool_calls,
        prediction,
        prompt_cache_key,
        prompt_cache_retention,
        reasoning_effort,
        safety_identifier,
        service_tier,
        store,
        tool_choice,
        tools,
        verbosity,
        web_search_options,
    }
}

answer_request! {
    /// Body of `/v1/completions`.
    CompletionRequest {
        prompt: Texts,
        #[serde(default)]
        logprobs: Option<usize>,
    }
    unsupported {
        best_of,
        echo,
        suffix,
    }
}

/// Body of `/v1/embeddings`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields that have no effect")]
pub struct EmbeddingRequest {
    pub input: EmbeddingInput,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// As in requests for answers.
    #[serde(default)]
    user: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// What to embed: a text, or a list of texts and content parts.
#[derive(Debug)]
pub struct EmbeddingInput(pub Vec<Part>);

impl<'de> Deserialize<'de> for EmbeddingInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = |either: Either<EmbeddingItem>| match either {
            Either::Text(text) => Self(vec![text.into()]),
            Either::List(items) => Self(items.into_iter().map(|item| item.0).collect()),
        };
        deserializer.deserialize_any(TextOr(parts, "a text or a list of texts and content parts", PhantomData))
    }
}

struct EmbeddingItem(Part);

impl<'de> Deserialize<'de> for EmbeddingItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Item;
        impl<'de> Visitor<'de> for Item {
            type Value = EmbeddingItem;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a content part (token ids are not supported)")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<EmbeddingItem, E> {
                Ok(EmbeddingItem(text.to_string().into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<EmbeddingItem, A::Error> {
                Part::deserialize(MapAccessDeserializer::new(fields)).map(EmbeddingItem)
            }
        }
        deserializer.deserialize_any(Item)
    }
}

/// Body of `/v1/attention`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionRequest {
    pub messages: Vec<ChatMessage>,
    pub word: String,
    /// Which of the word's places in the messages, from 0; absent: the mean over all.
    #[serde(default)]
    pub occurrence: Option<usize>,
    /// Absent: the last of the pre-decoder.
    #[serde(default)]
    pub layer: Option<usize>,
    /// Absent: the mean over all.
    #[serde(default)]
    pub head: Option<usize>,
    #[serde(default)]
    pub model: Option<String>,
}

fn urls_of<'a>(place: &str, parts: &'a mut [Part]) -> impl Iterator<Item = (String, &'a mut String)> {
    let urls = parts.iter_mut().enumerate().filter_map(|(n, part)| Some((n, &mut part.image_url.as_mut()?.url)));
    urls.map(move |(n, url)| (format!("{place}[{n}].image_url.url"), url))
}

fn urls_in(messages: &mut [ChatMessage]) -> Vec<(String, &mut String)> {
    let parts = messages.iter_mut().enumerate().filter_map(|(n, message)| Some((n, message.content.as_mut()?)));
    parts.flat_map(|(n, parts)| urls_of(&format!("messages[{n}].content"), &mut parts.0).collect::<Vec<_>>()).collect()
}

impl ImageUrls for ChatRequest {
    fn image_urls(&mut self) -> Vec<(String, &mut String)> {
        urls_in(&mut self.messages)
    }
}

impl ImageUrls for AttentionRequest {
    fn image_urls(&mut self) -> Vec<(String, &mut String)> {
        urls_in(&mut self.messages)
    }
}

impl ImageUrls for EmbeddingRequest {
    fn image_urls(&mut self) -> Vec<(String, &mut String)> {
        urls_of("input", &mut self.input.0).collect()
    }
}

impl ImageUrls for CompletionRequest {
    fn image_urls(&mut self) -> Vec<(String, &mut String)> {
        Vec::new()
    }
}
