//! Chat templates that try to exhaust memory, stack or time: each is stopped with an error that names the reason.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper fails its test")]

use std::time::{Duration, Instant};

use crate::common::tiny_tokenizer;
use haplovl::Result;
use haplovl::config::HaploVlConfig;
use haplovl::processor::{ChatTemplate, Conversation, Message, Processor, ProcessorSettings, TextTokenizer};
use proptest::prelude::*;
use serde_json::{Map, json};

/// Renders a conversation with a template, through the tiny tokenizer.
fn render(source: &str, conversation: &Conversation) -> Result<String> {
    let config = HaploVlConfig { max_position_embeddings: 1 << 24, ..HaploVlConfig::tiny() };
    let names = [("eos_token", "<|endoftext|>"), ("bos_token", "<|im_start|>")];
    let names = names.into_iter().map(|(name, token)| (name.to_owned(), json!(token)));
    let tokenizer = TextTokenizer::new(tiny_tokenizer(), Map::from_iter(names))?;
    let template = ChatTemplate::new(source)?;
    let processor = Processor::new(&config, ProcessorSettings::new(&config), tokenizer, Some(template))?;
    let sequence = processor.sequence(conversation, true)?;
    processor.tokenizer().decode(&sequence.input_ids, false)
}

/// The error of a hostile template, on a thread with the small stack of thread pools.
fn error(source: String) -> String {
    let started = Instant::now();
    let render = move || render(&source, &Conversation::ask([], "hi"));
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(render).unwrap();
    let message = thread.join().unwrap().map(|prompt| prompt.len()).unwrap_err().to_string();
    // Far above the measured time (0.1 to 0.8 s), far below the time without limits.
    assert!(started.elapsed() < Duration::from_secs(20), "{message}");
    assert!(message.starts_with("chat template: ") && message.chars().count() < 300, "{message}");
    message
}

#[track_caller]
fn assert_error(source: impl Into<String>, expected: &str) {
    let source = source.into();
    let shown: String = source.chars().take(100).collect();
    let message = error(source);
    assert!(message.contains(expected), "{shown}: {message}");
}

#[test]
fn cyclic_values_are_rejected() {
    for print in ["{{ ns }}", "{{ ns|tojson }}", "{{ ns|string }}", "{{ 'a'.join([ns]) }}", "{{ ns == ns.y }}"] {
        let source = format!("{{% set ns = namespace() %}}{{% set ns.y = ns %}}{print}");
        assert_error(source, "a namespace cannot be part of");
    }
    for hidden in ["[ns]", "{'a': ns}", "[[ns]]"] {
        assert_error(
            format!("{{% set ns = namespace() %}}{{% set ns.y = {hidden} %}}"),
            "a namespace cannot be part of",
        );
    }
    assert_error("{% set ns = namespace() %}{% set ns.x = namespace() %}{% set ns.x.y = ns %}", "syntax error");
    assert_error("{% macro f() %}{% endmacro %}{% set ns = namespace(f=f) %}", "a macro cannot be part of");
    assert_error("{% for i in [1] %}{{ [loop] }}{% endfor %}", "`loop` cannot be part of");
}

#[test]
fn deep_and_shared_values_are_rejected() {
    for (grow, print) in [
        ("[ns.x]", "{{ ns.x }}"),
        ("[ns.x]", "{{ ns.x|tojson }}"),
        ("{'a': ns.x}", "{{ ns.x == ns.x }}"),
        ("[1, [ns.x]]", ""),
        ("[ns.x]|list|map('list')|list", ""),
        ("dict(a=ns.x)", ""),
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(99999) %}}{{% set ns.x = {grow} %}}{{% endfor %}}{print}"
        );
        assert_error(source, "nests lists or mappings more than 64 deep");
    }
    let double = |print: &str| {
        format!(
            "{{% set ns = namespace(x=1, y=1) %}}{{% for i in range(40) %}}{{% set ns.x = [ns.x, ns.x] %}}\
             {{% set ns.y = [ns.y, ns.y] %}}{{% endfor %}}{print}"
        )
    };
    for print in [
        "{{ ns.x == ns.y }}",
        "{{ ns.x < ns.y }}",
        "{{ ns.x in [ns.y] }}",
        "{{ [ns.x, ns.y]|sort }}",
        "{{ [ns.x, ns.y]|unique }}",
    ] {
        assert_error(double(print), "does it loop endlessly?");
    }
    for print in [
        "{{ ns.x }}",
        "{{ ns.x|string|length }}",
        "{{ ns.x|tojson }}",
        "{{ '%s'|format(ns.x) }}",
        "{{ '{}'.format(ns.x) }}",
    ] {
        let message = error(double(print));
        assert!(message.contains("loop endlessly") || message.contains("16 MiB"), "{print}: {message}");
    }
}

#[test]
fn deeply_nested_syntax_is_rejected() {
    for operator in ["+", "-", "*", "/", "//", "%", "~", "**", "and", "or"] {
        assert_error(format!("{{{{ {}1 }}}}", format!("1 {operator} ").repeat(100_000)), "more than 200 deep");
    }
    for (start, repeated, end) in [
        ("x", ".a", ""),
        ("x", "[0]", ""),
        ("x", "()", ""),
        ("x", ".a()", ""),
        ("x", "[:]", ""),
        ("x", "|upper", ""),
        ("x", " is defined", ""),
        ("", "not ", "1"),
        ("", "-", "1"),
        ("", "1 if 1 else ", "1"),
        ("", "(", ""),
        ("", "[", ""),
        ("", "{1:", ""),
        ("", "f(", ""),
        ("", "-(", ""),
        ("", "x|f(", ""),
    ] {
        let count = 900_000 / repeated.len().max(9);
        assert_error(format!("{{{{ {start}{}{end} }}}}", repeated.repeat(count)), "syntax error");
        assert_error(format!("{{{{ {start}{}{end}", repeated.repeat(300)), "syntax error");
    }
    for (start, end) in [
        ("{% if 1 %}", "{% endif %}"),
        ("{% for x in [1] %}", "{% endfor %}"),
        ("{% set x %}", "{% endset %}"),
        ("{% generation %}", "{% endgeneration %}"),
    ] {
        assert_error(start.repeat(9000) + &end.repeat(9000), "more than 40 deep");
    }
    assert_error(format!("{{% if 0 %}}{}{{% endif", "{% elif 0 %}".repeat(80_000)), "syntax error");
    assert_error(format!("{{% set {} = 1 %}}", "a".repeat(500_000)), "a name is longer than");
    assert_error("a".repeat((1 << 20) + 1), "is 1048577 bytes long, expected at most 1048576");
    assert_error("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "macro calls more than 256 deep");
    assert_error(
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
        "macro calls more than 256 deep",
    );
}

#[test]
fn keys_without_a_total_order_are_sorted_or_refused() {
    let ask = Conversation::ask([], "hi");
    for filter in ["sort", "sort(reverse=true)", "min", "max", "dictsort(by='value')"] {
        let items = |item: &dyn Fn(usize) -> String| (0..40).map(item).collect::<Vec<_>>().join(", ");
        let list = |item: &dyn Fn(usize) -> String| match filter.starts_with("dict") {
            true => format!("{{{{ {{{}}}|{filter} }}}}", items(&|n: usize| format!("'k{n}': {}", item(n)))),
            false => format!("{{{{ [{}]|{filter} }}}}", items(item)),
        };
        let nan = |n: usize| if n % 3 == 1 { "'nan'|float".to_owned() } else { format!("{}", n * 17 % 40) };
        assert!(render(&list(&nan), &ask).is_ok(), "{filter}");
        let mixed = |n: usize| ["1", "'a'", "none", "2.5", "[3]"][n * 7 % 5].to_owned();
        assert_error(list(&mixed), "cannot compare");
    }
    let stable = "{% for i in [['b', 1], ['a', 2], ['B', 3], ['a', 4]]|sort(attribute=0, reverse=true) %}\
        {{ i[1] }}{% endfor %}";
    assert!(render(stable, &ask).unwrap().contains("1324"));
}

#[test]
fn exploding_texts_are_rejected() {
    for source in [
        "{{ (['a' * 1000000] * 100000)|join }}",
        "{{ ('x' * 1000000).join(range(100000)) }}",
        "{{ (['a' * 1000000] * 100000)|string|length }}",
        "{{ ('{0:9999}' * 1000000).format('x')|length }}",
        "{{ '{:>99999999999}'.format('x') }}",
        "{{ ('{0:.999f}' * 100000).format(1.0) }}",
        "{{ messages|tojson(indent=10**9) }}",
        "{{ ('a\\n' * 1000000)|indent(10**9) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 1000000)|replace('', 'b' * 100000) }}",
        "{{ 'a ' * 50000000 }}",
        "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}",
    ] {
        assert_error(source, "more than 16 MiB");
    }
    for source in [
        "{{ (['a' * 1000] * 100000)|sum(start='') }}",
        "{% set ns = namespace() %}{% for i in range(9999) %}{% set ns.x = 'a' * 1000000 %}{% endfor %}",
        "{{ ('a ' * 7000000).split(' ')|length }}",
        "{{ ('a' * 15000000)|list|length }}",
        "{{ [[1] * 1000] * 100000 }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{{ (['a' * 1000000] * 100000)|map('upper')|list|length }}",
    ] {
        let message = error(source.into());
        assert!(
            message.contains("more than 128 MiB") || message.contains("more than 1000000 steps"),
            "{source}: {message}"
        );
    }
    assert_error("{{ range(10 ** 18) }}", "more than 100000 numbers");
    assert_error("{{ 9 ** 9 ** 9 ** 9 }}", "outside of 64 bits");
}

#[test]
fn endless_loops_hit_the_work_limit() {
    let often = |set: &str, of: &str| {
        format!(
            "{{% set s = {set} %}}{{% for i in range(9999) %}}{{% for j in range(9999) %}}{{% set x = {of} %}}{{% endfor %}}{{% endfor %}}"
        )
    };
    for of in [
        "s == s",
        "s[100:200]",
        "s|length",
        "s.count('a')",
        "'b' in s",
        "s.islower()",
        "s.strip('a')",
        "s.splitlines()",
        "1",
        "namespace(a=1)",
    ] {
        let message = error(often("'a' * 15000000", of));
        assert!(message.contains("loop endlessly") || message.contains("128 MiB"), "{of}: {message}");
    }
    assert_error(often("range(90000)|list", "s|sort(reverse=true)"), "loop endlessly");
    assert_error("{{ range(99999)|unique|list }}", "loop endlessly");
    assert_error("{{ range(99999)|select('in', range(99999)|list)|list }}", "loop endlessly");
    assert_error(
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}",
        "loop endlessly",
    );
}

#[test]
fn unsupported_features_are_named() {
    for (source, named) in [
        ("{{ 1|pprint }}", "the filter `pprint` is not supported"),
        ("{{ 1 is prime }}", "the test `is prime` is not supported"),
        ("{% include 'x' %}", "`{% include %}` is not supported"),
        ("{% import 'x' as x %}", "`{% import %}` is not supported"),
        ("{{ 'x'.encode() }}", "a string has no method `encode`"),
        ("{{ open('x') }}", "`open` is undefined, not a function"),
        ("a\nb\n{{ nope.x }}", "`nope` is undefined (line 3)"),
        ("a\n{% if %}", "(line 2)"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ] {
        assert_error(source, named);
    }
}

/// Templates in the style of well-known model families, rewritten.
#[test]
fn templates_of_known_model_families_work() {
    let chatml = "{%- if messages[0]['role'] == 'system' %}\n    {{- '<S>' + messages[0]['content'] + '.' }}\n{%- else %}\n    \
        {{- '<S>none.' }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == 'user') or \
        (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}\n        \
        {{- '<' + message.role + '>' + message.content + '.' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt \
        %}\n    {{- '<A>' }}\n{%- endif %}";
    let vision = "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}{% if \
        loop.first and message['role'] != 'system' %}<S>none.{% endif %}<{{ message['role'] }}>{% if message['content'] is string %}\
        {{ message['content'] }}.{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in \
        content %}{% set image_count.value = image_count.value + 1 %}<image>{% elif 'text' in content %}{{ content['text'] }}{% endif \
        %}{% endfor %}.{% endif %}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}";
    let alternating = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] | trim + ' ' \
        %}{% set loop_messages = messages[1:] %}{% else %}{% set system_message = '' %}{% set loop_messages = messages %}{% endif \
        %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ \
        raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 %}{% set content = system_message + \
        message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ '[Q] ' + \
        content | trim + ' [/Q]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% \
        endfor %}";
    let headers = "{%- set tools_in_user = false if tools is none else true %}{%- if strftime_now is defined %}now{%- endif %}\n{%- for \
        message in messages %}\n{%- set content = '(' + message['role'] + ')' + message['content'] | trim + ';' %}\n{%- if loop.index0 \
        == 0 and bos_token is defined %}\n{%- set content = bos_token + content %}\n{%- endif %}\n{{- content }}\n{%- endfor %}";
    let thinking = "{%- set ns = namespace(is_first=false, system_prompt='', last=-1) -%}{%- for message in messages -%}{%- if \
        message['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for message in messages -%}{%- \
        if message['role'] == 'assistant' and message['content'] is not none -%}{%- set content = message['content'] -%}{%- if \
        '</t>' in content -%}{%- set content = content.split('</t>')[-1].lstrip('\\n') -%}{%- endif -%}{{- 'A:' + content + eos_token -}}\
        {%- else -%}{{- 'U' ~ loop.index ~ ':' ~ message['content'] | default('', true) -}}{%- endif -%}{%- endfor -%}{{- ns.last -}}";
    let turns = "{%- macro turn(role, text) -%}\n<{{ role | upper }}>{{ text | trim }}\n{%- endmacro -%}\n{% for role, group in [('u', \
        messages | selectattr('role', 'equalto', 'user') | list), ('a', messages | rejectattr('role', 'in', ['user', 'system']) | \
        list)] %}\n{%- for m in group %}{{ turn(role, m.content) }}{{ ',' if not loop.last }}{% endfor %}\n{%- endfor %}";
    let mut conversation: Conversation =
        [Message::system("be brief"), Message::user(["hi ".into()])].into_iter().collect();
    conversation.push(Message::assistant("yes"));
    conversation.push(Message::user(["ok".into()]));
    for (template, expected) in [
        (chatml, "<S>be brief.<user>hi .<assistant>yes.<user>ok.<A>"),
        (vision, "<system>be brief.<user>hi .<assistant>yes.<user>ok.<A>"),
        (alternating, "<|im_start|>[Q] be brief hi [/Q] yes <|endoftext|>[Q] ok [/Q]"),
        // It ignores `add_generation_prompt`, but starts the assistant's turn.
        (headers, "now<|im_start|>(system)be brief;(user)hi;(assistant)yes;(user)ok;(assistant)"),
        (thinking, "U1:be briefU2:hi A:yes<|endoftext|>U4:ok3"),
        (turns, "<U>be brief\n\nhi,<U>ok<A>yes<A>"),
    ] {
        assert_eq!(render(template, &conversation).unwrap(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any template source is rendered or rejected without a panic.
    #[test]
    fn any_source_is_rendered_or_rejected(source in "(\\{\\{|\\{%|\\}\\}|%\\}|\\{#|#\\}|[a-z]{1,3}|[ \\n'\"\\[\\](){}|.,:=+~*-]|for|in|if|endif|endfor|set|\\PC){0,40}") {
        let _ = render(&source, &Conversation::ask([], "hi"));
    }

    /// User text is in the prompt unchanged, and never becomes a control token.
    #[test]
    fn messages_round_trip_without_control_tokens(pieces in prop::collection::vec("<\\|im_end\\|>|<\\|im_start\\|>|<\\|endoftext\\|>|<image >|\\{\\{ 1 \\}\\}|[ -~]{0,5}", 0..6)) {
        let text: String = pieces.concat().replace("<image>", "").replace("<video>", "");
        let config = HaploVlConfig { max_position_embeddings: 4096, ..HaploVlConfig::tiny() };
        let tokenizer = TextTokenizer::new(tiny_tokenizer(), Map::new()).unwrap();
        let processor = Processor::new(&config, ProcessorSettings::new(&config), tokenizer, None).unwrap();
        let sequence = processor.sequence(&Conversation::ask([], text.clone()), false).unwrap();
        let special = sequence.input_ids.iter().filter(|&&id| processor.tokenizer().is_special(id)).count();
        prop_assert_eq!(special, 2);
        let unknown = text.replace(['`', '~', '^', '\\', '{', '}'], "\u{FFFD}");
        let prompt = processor.tokenizer().decode(&sequence.input_ids, false).unwrap();
        prop_assert_eq!(prompt, format!("<|im_start|>user\n{unknown}<|im_end|>\n"));
    }
}
