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
    ChatTemplate::parse(
        Path::new("m/chat_template.jinja"),
        source.into(),
        "<bos>",
        "<eos>",
    )
}

fn turn(role: &str, content: &str) -> Message {
    Message {
        role: role.into(),
        content: content.into(),
    }
}

fn message(source: &str, messages: &[Message]) -> String {
    let text = template(source).and_then(|t| t.render(messages));
    text.unwrap_err().to_string()
}

#[test]
fn one_question() {
    let template = template(TEMPLATE).unwrap();
    assert_eq!(
        template
            .render(&[Message::user(" Why <b> & 'c'? ")])
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
        template.render(&messages).unwrap(),
        "<bos><start_of_turn>user\nBe brief.\n\n1<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n\
         <start_of_turn>user\n3<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn blocks_are_trimmed_and_pythons_methods_known() {
    let source = "{% for m in messages %}\n  {% if m.content.startswith('a') %}\n{{ m.content.strip().upper() }}\n  {% endif %}\n{% endfor %}";
    let text = template(source).unwrap().render(&[Message::user("a b ")]);
    assert_eq!(text.unwrap(), "A B\n");
    let text = template("{{ messages[0].get('name', 'x') }}{{ eos_token }}\n").unwrap();
    assert_eq!(text.render(&[Message::user("a")]).unwrap(), "x<eos>");
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
        message("{{ strftime_now('%Y') }}", &[]),
        "the chat template of m/chat_template.jinja: unknown function: strftime_now is unknown (in chat_template:1)"
    );
}

#[test]
fn a_template_that_goes_on_and_on_is_stopped() {
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let written = "{% set x = 'x' * 1000000000 %}{{ x }}";
    for source in [loops, written] {
        assert_eq!(
            message(source, &[]),
            "the chat template of m/chat_template.jinja: it is not done after 10000000 steps; use another template"
        );
    }
    let long = "x".repeat(10_000_000);
    let text = template(TEMPLATE).unwrap().render(&[Message::user(long)]);
    assert!(text.unwrap().len() > 10_000_000);
}
