use super::*;

/// In the manner of Gemma's, with what such templates use: tests, slices, methods, block trimming.
const TEMPLATE: &str = "{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{% for message in turns %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {{ raise_exception('images') }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
";

fn template(source: &str) -> Result<ChatTemplate> {
    let tokens = [("bos_token", "<bos>"), ("eos_token", "<eos>")];
    ChatTemplate::parse(Path::new("m/chat_template.jinja"), source.into(), tokens)
}

fn turn(role: &str, content: &str) -> Message {
    Message {
        role: role.into(),
        content: content.into(),
    }
}

fn talk(messages: &[Message]) -> Conversation {
    Conversation::new(messages.iter().cloned())
}

fn message(source: &str, messages: &[Message]) -> String {
    let text = template(source).and_then(|t| t.render(&talk(messages)));
    text.unwrap_err().to_string()
}

#[test]
fn one_question() {
    let template = template(TEMPLATE).unwrap();
    assert_eq!(
        template
            .render(&talk(&[Message::user(" Why <b> & 'c'? ")]))
            .unwrap(),
        "<bos><start_of_turn>user\nWhy <b> & 'c'?<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn a_conversation_with_a_system_message() {
    let template = template(TEMPLATE).unwrap();
    let messages = [
        turn("system", "Be brief."),
        turn("user", "1"),
        turn("assistant", "2"),
        turn("user", "3"),
    ];
    assert_eq!(
        template.render(&talk(&messages)).unwrap(),
        "<bos><start_of_turn>user\nBe brief.\n\n1<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n\
         <start_of_turn>user\n3<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn blocks_are_trimmed_and_pythons_methods_known() {
    let source = "{% for m in messages %}\n  {% if m.content.startswith('a') %}\n{{ m.content.strip().upper() }}\n  {% endif %}\n{% endfor %}";
    let text = template(source)
        .unwrap()
        .render(&talk(&[Message::user("a b ")]));
    assert_eq!(text.unwrap(), "A B\n");
    let text = template("{{ messages[0].get('name', 'x') }}{{ eos_token }}\n").unwrap();
    assert_eq!(text.render(&talk(&[Message::user("a")])).unwrap(), "x<eos>");
}

#[test]
fn what_the_template_refuses_is_said() {
    assert_eq!(
        message(TEMPLATE, &[turn("assistant", "2")]),
        "the chat template of m/chat_template.jinja: invalid operation: Conversation roles must alternate user/assistant/user/assistant/... (in chat_template:13)"
    );
}

#[test]
fn a_broken_template_is_refused() {
    assert_eq!(
        message("{% if %}", &[]),
        "the chat template of m/chat_template.jinja: syntax error: unexpected end of block (in chat_template:1)"
    );
    assert_eq!(
        message("{{ ask_somebody() }}", &[Message::user("a")]),
        "the chat template of m/chat_template.jinja: unknown function: ask_somebody is unknown (in chat_template:1)"
    );
}

#[test]
fn a_template_that_goes_on_and_on_is_stopped() {
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let written = "{% set x = 'x' * 1000000000 %}{{ x }}";
    for source in [loops, written] {
        assert_eq!(
            message(source, &[Message::user("a")]),
            "the chat template of m/chat_template.jinja: it is not done after 10000000 steps; use another template"
        );
    }
    let long = "x".repeat(10_000_000);
    let text = template(TEMPLATE)
        .unwrap()
        .render(&talk(&[Message::user(long)]));
    assert!(text.unwrap().len() > 10_000_000);
}

#[test]
fn what_is_not_supported_is_said() {
    let said = |source: &str| message(source, &[Message::user("a")]);
    let begin = "the chat template of m/chat_template.jinja:";
    assert_eq!(
        said("{% do messages.append(1) %}"),
        format!("{begin} the tag do is not supported")
    );
    assert_eq!(
        said(r"{{ '\N{BULLET}' }}"),
        format!(r"{begin} a string has an escape \N that is not supported").replace('\\', r"\")
    );
    assert_eq!(
        said("{{ 'a b'|wordwrap(1) }}"),
        format!(
            "{begin} invalid operation: the filter wordwrap is not supported (in chat_template:1)"
        )
    );
    assert_eq!(
        said("{{ strftime_now('%Q') }}"),
        format!("{begin} invalid operation: strftime_now does not know %Q (in chat_template:1)")
    );
    assert_eq!(
        message("", &[]),
        format!("{begin} there is no message; give one at least")
    );
}

fn parse(json: &str) -> Result<Conversation> {
    Conversation::parse(Path::new("talk.json"), json.as_bytes())
}

#[test]
fn a_conversation_is_a_list_of_messages_or_an_object() {
    let source = "{{ messages|tojson }}{{ tools|tojson }}{{ add_generation_prompt }}{{ bos_token }}{{ mood }}";
    let render = |json: &str| {
        template(source)
            .unwrap()
            .render(&parse(json).unwrap())
            .unwrap()
    };
    assert_eq!(
        render(r#"[{"role": "user", "content": "1", "b": 1, "a": null}]"#),
        r#"[{"role": "user", "content": "1", "b": 1}]nullTrue<bos>"#
    );
    assert_eq!(
        render(
            r#"{"mood": "gay", "bos_token": "<s>", "add_generation_prompt": false, "tools": [{"z": 1, "a": 2}],
                "messages": [{"thinking": "?", "role": "assistant"}]}"#
        ),
        r#"[{"thinking": "?", "role": "assistant", "reasoning_content": "?"}][{"z": 1, "a": 2}]False<s>gay"#
    );
    let talk = parse(r#"[{"role": "user"}]"#)
        .unwrap()
        .without_generation_prompt();
    let text = template("{{ add_generation_prompt }}")
        .unwrap()
        .render(&talk);
    assert_eq!(text.unwrap(), "False");
}

#[test]
fn what_is_no_conversation_is_refused() {
    let end = "; give a JSON list of messages, or an object with messages and what else the template takes";
    for (json, reason) in [
        ("[", "EOF while parsing a list at line 1 column 1"),
        ("3", "messages must be a list of objects"),
        (r#"["hi"]"#, "messages must be a list of objects"),
        (r#"{"tools": []}"#, "messages must be a list of objects"),
        (
            r#"{"messages": [], "tools": ["f"]}"#,
            "tools must be a list of objects",
        ),
        (
            r#"{"messages": [], "continue_final_message": true}"#,
            "continue_final_message is not supported",
        ),
    ] {
        assert_eq!(
            parse(json).unwrap_err().to_string(),
            format!("talk.json: {reason}{end}")
        );
    }
    assert_eq!(
        parse("[]").unwrap().at("noon").unwrap_err().to_string(),
        "noon is not a date and time such as 2026-11-27T09:30:00"
    );
}

#[test]
fn the_template_for_tools_is_used_where_there_are_tools() {
    let sources = [("default", "plain"), ("tool_use", "tools")];
    let several = |sources: &[(&str, &str)]| {
        let sources = sources
            .iter()
            .map(|(name, text)| ((*name).into(), (*text).into()));
        ChatTemplate::of_several(Path::new("m"), sources.collect(), BTreeMap::new()).unwrap()
    };
    let plain = parse(r#"{"messages": [{}], "tools": null}"#).unwrap();
    let tools = parse(r#"{"messages": [{}], "tools": []}"#).unwrap();
    let both = several(&sources);
    assert_eq!(both.render(&plain).unwrap(), "plain");
    assert_eq!(both.render(&tools).unwrap(), "tools");
    assert_eq!(several(&sources[..1]).render(&tools).unwrap(), "plain");
    assert_eq!(
        several(&sources[1..])
            .render(&plain)
            .unwrap_err()
            .to_string(),
        "the chat template of m: none of its templates (tool_use) is named default"
    );
}
