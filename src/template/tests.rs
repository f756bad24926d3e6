use super::*;

fn value(text: impl Into<bytes::Bytes>, version: &str) -> VersionedValue {
    VersionedValue {
        bytes: text.into(),
        version: version.into(),
    }
}

fn values() -> Values {
    let json = concat!(
        r#"{"password":"a'b\"$c","port":5432,"ratio":1.10,"half":0.5,"tls":{"on":true},"#,
        r#""value":"inner","list":[1,"x"],"none":null}"#
    );
    let input = |current: VersionedValue, previous: Option<VersionedValue>| SecretInput {
        current,
        previous: Some(previous),
    };
    Values::from([
        (
            "db".into(),
            input(value(json, "7"), Some(value(r#"{"password":"old"}"#, "6"))),
        ),
        ("token".into(), input(value("t0k\n", "1"), None)),
        ("blob".into(), input(value(&[0xff, 0x00][..], "1"), None)),
    ])
}

fn template(source: &str) -> Template {
    Template::parse("t", source.into()).unwrap_or_else(|errors| panic!("{source}: {errors:?}"))
}

fn render(source: &str) -> Result<String, String> {
    let pass = template(source).render(&values());
    let text = |bytes: Zeroizing<Vec<u8>>| String::from_utf8(bytes.to_vec()).expect("text");
    pass.result
        .map(text)
        .map_err(|error| format!("{}: {}", error.line.unwrap_or(0), error.message))
}

fn errors(source: &str) -> Vec<String> {
    let errors = Template::parse("t", source.into())
        .err()
        .unwrap_or_default();
    errors
        .into_iter()
        .map(|error| format!("{}: {}", error.line.unwrap_or(0), error.message))
        .collect()
}

#[test]
fn a_secret_has_a_text_members_and_a_previous_value() {
    for (source, expected) in [
        (r#"{{ secret("token").value }}"#, "t0k\n"),
        (r#"{{ secret("token") }}"#, "t0k\n"),
        (r#"{{ secret("token").value|trim }}"#, "t0k"),
        (
            r#"{{ secret("db").version }} {{ secret("db").name }}"#,
            "7 db",
        ),
        (
            r#"{{ secret("db").password }}:{{ secret("db").port }}"#,
            r#"a'b"$c:5432"#,
        ),
        (r#"{{ secret("db")["password"] }}"#, r#"a'b"$c"#),
        // Members of the secret take precedence over fields of its value.
        (r#"{{ secret("db").fields.value }}"#, "inner"),
        (
            r#"{{ secret("db").ratio }} {{ secret("db").tls|tojson }}"#,
            r#"1.10 {"on": true}"#,
        ),
        (
            concat!(
                r#"{{ secret("db").ratio|tojson }} {{ secret("db").half|tojson }} "#,
                r#"{{ secret("db").port|tojson }}"#
            ),
            r#""1.10" 0.5 5432"#,
        ),
        (
            r#"{{ secret("db").previous.password }} {{ secret("db").previous.version }}"#,
            "old 6",
        ),
        (r#"{{ secret("db").previous }}"#, r#"{"password":"old"}"#),
        (
            r#"{% if secret("token").previous %}yes{% else %}no{% endif %}"#,
            "no",
        ),
        (r#"{% if secret("token") %}yes{% endif %}"#, "yes"),
        (r#"{{ secret("db").user|default("nobody") }}"#, "nobody"),
        (
            r#"{% for n in ["token", "db"] %}{{ secret(n).version }}{% endfor %}"#,
            "17",
        ),
        (
            r#"{% for k, v in secret("db").fields|items %}{{ k }} {% endfor %}"#,
            "half list none password port ratio tls value ",
        ),
        (r#"{{ secret("blob").base64 }}"#, "/wA="),
        // The trailing newline is kept, and nothing is escaped unless the template asks for it.
        ("a & b\n", "a & b\n"),
        (
            concat!(
                r#"{{ secret("db").password }}"#,
                r#"{% autoescape "html" %}{{ secret("db").password }}{% endautoescape %}"#
            ),
            r#"a'b"$ca&#x27;b&quot;$c"#,
        ),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn filters_quote_for_the_reader_of_the_file() {
    for (source, expected) in [
        (r#"{{ secret("db").password|quote }}"#, r#"'a'\''b"$c'"#),
        (r#"{{ secret("db").password|envquote }}"#, r#""a'b\"\$c""#),
        (r#"{{ secret("db").password|tojson }}"#, r#""a\u0027b\"$c""#),
        (r#"{{ secret("db").password|urlencode }}"#, "a%27b%22%24c"),
        (
            r#"{{ "a/b c@d:e+é~-._"|urlencode }}"#,
            "a%2Fb%20c%40d%3Ae%2B%C3%A9%7E-._",
        ),
        (r#"{{ "hi"|b64encode }} {{ "aGk="|b64decode }}"#, "aGk= hi"),
        (r#"{{ ("[1, 2]"|fromjson)[1] }}"#, "2"),
        (r#"{{ env("NO_SUCH_VARIABLE_HERE")|default("x") }}"#, "x"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

/// The shell itself shows whether a word is quoted correctly.
#[test]
fn a_shell_reads_back_what_was_quoted() {
    let nasty = "a'b\"$HOME`id`\\n\n !*?~#;|&<>() é";
    let values = Values::from([(
        "s".into(),
        SecretInput {
            current: value(nasty, "1"),
            previous: None,
        },
    )]);
    for filter in ["quote", "envquote"] {
        let pass =
            template(&format!("printf %s {{{{ secret(\"s\").value|{filter} }}}}")).render(&values);
        let script = String::from_utf8(pass.result.expect("rendered").to_vec()).expect("text");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), nasty, "{filter}");
    }
}

#[test]
fn an_error_has_a_line_and_quotes_no_value() {
    for (source, expected) in [
        (
            "\n{{ secret(\"db\").pasword }}",
            "2: undefined value: the secret db has no member \"pasword\"",
        ),
        (
            "{{ secret(\"token\").password }}",
            "1: undefined value: the secret token has no member \"password\"",
        ),
        (
            "{{ secret(\"blob\").value }}",
            "1: the secret blob is not text; use its .base64",
        ),
        (
            "{{ secret(\"db\", 1) }}",
            "1: secret takes one name, such as secret(\"orders-db\")",
        ),
        (
            "{{ secret(7) }}",
            "1: secret takes a name, which must be a string",
        ),
        (
            "{{ (secret(\"token\").value ~ '!')|b64decode }}",
            "1: b64decode: the input is not base64: expected RFC 4648 in the standard or the \
             URL-safe alphabet, not in both",
        ),
        (
            "{{ secret(\"token\").value|fromjson }}",
            "1: fromjson: the input is not JSON",
        ),
        ("{{ secret(\"token\").value|int }}", "1: invalid operation"),
        ("{{ -secret(\"token\").value }}", "1: invalid operation"),
        ("{{ secret(\"token\").value + 1 }}", "1: invalid operation"),
        (
            "{{ secret(\"db\")[secret(\"token\").value] }}",
            "1: undefined value",
        ),
        ("{{ env(\"NO_SUCH_VARIABLE_HERE\") }}", "1: undefined value"),
    ] {
        let error = render(source).expect_err(source);
        assert_eq!(error, expected, "{source}");
        assert!(!error.contains("t0k"), "{error}");
    }
}

/// Renders with one secret, `j`.
fn render_json(json: &str, source: &str) -> Result<String, String> {
    let input = SecretInput {
        current: value(json.to_owned(), "1"),
        previous: None,
    };
    let pass = template(source).render(&Values::from([("j".into(), input)]));
    let text = |bytes: Zeroizing<Vec<u8>>| String::from_utf8(bytes.to_vec()).expect("text");
    pass.result.map(text).map_err(|error| error.message)
}

#[test]
fn numbers_are_as_they_are_written_however_deep() {
    for number in [
        "0",
        "-1",
        "9007199254740993",
        "18446744073709551615",
        "12345678901234567890123",
        "123456789012345678901234567890123456789012345678901234567890",
        "1.10",
        "1.0",
        "0.1",
        "1e3",
        "1E400",
        "-0",
        "-0.0",
        "0.30000000000000004",
        "1.00000000000000000001",
    ] {
        let json = format!(r#"{{"a":{number},"in":{{"a":[{number}]}}}}"#);
        for source in [
            "{{ secret('j').a }}",
            "{{ secret('j')['in'].a[0] }}",
            "{{ (secret('j').value|fromjson).a }}",
            "{{ secret('j').fields['in'].a|first }}",
        ] {
            let rendered = render_json(&json, source);
            assert_eq!(rendered.as_deref(), Ok(number), "{source}");
        }
        let rendered = render_json(&json, "{{ secret('j')['in']|tojson }}").expect("rendered");
        assert!(rendered.contains(number), "{number}: {rendered}");
    }
    let sum = "{{ secret('j').a + 1 }} {{ secret('j').a|tojson }}";
    let rendered = render_json(r#"{"a":12345678901234567890123}"#, sum);
    let expected = "12345678901234567890124 12345678901234567890123";
    assert_eq!(rendered.as_deref(), Ok(expected));
}

#[test]
fn what_cannot_be_converted_is_an_error_of_its_own_member() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let json = format!(r#"{{"half":"\ud83d","\ud83d":1,"in":["\udc00"],"deep":{deep},"ok":1}}"#);
    for (source, expected) in [
        ("{{ secret('j').ok }}", Ok("1")),
        ("{{ secret('j').half }}", Err("is not Unicode")),
        ("{{ secret('j')['in'] }}", Err("is not Unicode")),
        ("{{ secret('j').fields.half }}", Err("is not Unicode")),
        ("{{ secret('j').deep }}", Err("is nested too deeply")),
        ("{{ secret('j').none }}", Err("no member")),
    ] {
        match (render_json(&json, source), expected) {
            (Ok(text), Ok(expected)) => assert_eq!(text, expected, "{source}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{source}: {error}"),
            (rendered, _) => panic!("{source}: {rendered:?}"),
        }
    }
}

#[test]
fn a_secret_is_converted_once_however_often_it_is_used() {
    let json = format!(r#"{{"a":[{}1],"b":2}}"#, "1,".repeat(100_000));
    let source = "{% set n = namespace(l=[]) %}{% for i in range(10000) %}\
                  {% set n.l = [secret('j').a, secret('j').value, secret('j').base64] %}\
                  {% endfor %}{{ secret('j').b }}";
    assert_eq!(render_json(&json, source).as_deref(), Ok("2"));
}

/// Each of these would take gigabytes.
#[test]
fn what_takes_too_much_memory_is_refused_before() {
    let doubled = |expression: &str| {
        format!(
            "{{% set n = namespace(v='xxxxxxxxxxxxxxxx') %}}{{% for i in range(40) %}}\
             {{% set n.v = {expression} %}}{{% endfor %}}"
        )
    };
    for source in [
        "{{ 'x' * 1000000000 }}".to_owned(),
        "{{ [0] * 1000000000 }}".into(),
        "{% set x = (0, 1) * 1000000000 %}".into(),
        "{{ '%1000000000d'|format(1) }}".into(),
        "{{ 'x'|indent(1000000000, true) }}".into(),
        "{{ ['x']|batch(1000000000, 'x')|list }}".into(),
        doubled("n.v ~ n.v"),
        doubled("n.v + n.v"),
        doubled("[n.v, n.v]|join"),
        doubled("n.v|replace('x', 'xx')"),
        doubled("n.v|b64encode|b64encode|b64encode"),
        doubled("n.v|list|tojson"),
        doubled("n.v|quote|quote ~ n.v"),
        doubled("n.v|urlencode|urlencode ~ n.v"),
        doubled("('[' ~ '0,' * 1000000 ~ '0]')|fromjson"),
        doubled("[n.v, n.v]") + "{{ n.v }}",
        doubled("[n.v, n.v]") + "{{ n.v ~ '' }}",
        doubled("[n.v, n.v]") + "{{ '' ~ n.v }}",
        doubled("{'a': n.v, 'b': n.v}") + "{{ n.v|string }}",
        doubled("(n.v, n.v)") + "{{ n.v|tojson }}",
        doubled("[n.v, n.v]") + "{{ [n.v]|map('upper')|join }}",
        doubled("[n.v, n.v]") + "{{ 'x'|replace('x', n.v) }}",
        doubled("[n.v, n.v]") + "{{ {'a': 1}|tojson(indent=n.v) }}",
        doubled("[n.v, n.v]") + "{{ n.v in 'x' }}",
        doubled("[n.v, n.v]") + "{{ n.v not in 'x' }}",
        doubled("[n.v, n.v]") + "{{ 'x' is startingwith(n.v) }}",
        doubled("[n.v, n.v]") + "{% set x %}{{ n.v }}{% endset %}",
        doubled("[n.v, n.v]") + "{% macro m(x) %}{{ x ~ x }}{% endmacro %}{{ m(n.v) }}",
        doubled("dict(a=n.v, b=n.v)") + "{{ n.v|quote }}",
        doubled("[n.v] * 1000") + "{{ n.v|b64encode }}",
        "{{ ['0123456789' * 1000] * 1000000 ~ '' }}".into(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n ~ '' }}".into(),
        "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}\
         {{ m('xxxxxxxx', 60) }}"
            .into(),
        "{% set x %}{% for i in range(100000) %}{% for j in range(100000) %}0123456789\
         {% endfor %}{% endfor %}{% endset %}"
            .into(),
    ] {
        let error = render(&source).expect_err(&source);
        assert!(
            ["steps", "invalid", "exceeds", "too deeply"]
                .iter()
                .any(|reason| error.contains(reason)),
            "{source}: {error}"
        );
    }
}

#[test]
fn operators_make_the_text_that_they_always_made() {
    let long = "x".repeat(1_000_000);
    for (source, expected) in [
        ("{{ [1, 2] ~ [none] }}", "[1, 2][None]"),
        ("{{ [secret('db').port] ~ 1 }}", "[5432]1"),
        ("{{ secret('token') ~ 1 }}", "t0k\n1"),
        ("{{ 1 ~ 2 }}", "12"),
        ("{{ 'a' in 'ab' and 1 not in [2] }}", "True"),
        ("{{ secret('db').port in [5432] }}", "True"),
        ("{{ ['a'|upper]|join(',') }}", "A"),
        ("{{ [2, 1]|sort(reverse=true) }}", "[2, 1]"),
        ("{{ 'a' is in ['a'] }}", "True"),
        (
            "{% autoescape true %}{{ '<'|safe ~ secret('token').name ~ '<' }}{% endautoescape %}",
            "<token&lt;",
        ),
        ("{{ ('x' * 1000000) ~ [] }}", &format!("{long}[]")),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
    for source in ["{{ {}.a ~ '' }}", "{{ {}.a in 'x' }}", "{{ 1 in 2 }}"] {
        render(source).expect_err(source);
    }
}

#[test]
fn a_comparison_has_two_sides() {
    let error = Template::parse("t", "\n{{ 1 in [1] in [[1]] }}".into()).expect_err("a chain");
    assert_eq!(
        (error[0].line, error[0].message.contains("two sides")),
        (Some(2), true)
    );
}

#[test]
fn an_output_and_a_loop_that_are_too_long_are_refused() {
    let text = "0123456789".repeat(100);
    let endless = format!(
        "{{% for a in range(10000) %}}{{% for b in range(10000) %}}{text}\
         {{% endfor %}}{{% endfor %}}"
    );
    assert!(render(&endless).expect_err("too long").contains("exceeds"));
    let silent = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert!(render(silent).expect_err("too many").contains("steps"));
}

/// Each of these once aborted the process.
#[test]
fn deep_nesting_is_an_error() {
    let sum = format!("\n{{{{ 1{} }}}}", "+1".repeat(100_000));
    assert_eq!(errors(&sum), ["2: a tag has more than 1000 tokens"]);
    assert_eq!(errors(&format!("{{{{ 1{} }}}}", "+1".repeat(490))), [""; 0]);
    let branches = |count| format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(count));
    assert_eq!(
        errors(&branches(50_000)),
        ["1: the template has more than 100 elif"]
    );
    assert_eq!(errors(&branches(100)), [""; 0]);
    for grown in ["[n.v]", "[n.v] + [1]", "n.v + [1]", "{'a': n.v}"] {
        let grow = format!("{{% for i in range(100000) %}}{{% set n.v = {grown} %}}{{% endfor %}}");
        let source = format!("{{% set n = namespace(v=[]) %}}{}", grow.repeat(20));
        assert!(render(&source).expect_err(grown).contains("steps"));
    }
}

#[test]
fn errors_that_need_no_values_are_found_without_values() {
    for (source, expected) in [
        (
            "a\n{{ secret(\"x\" }}",
            &["2: unexpected `}`, expected `,`"][..],
        ),
        (
            "{% if true %}",
            &["1: unexpected end of input, expected end of block"],
        ),
        ("{% include \"other\" %}", &["1: unknown statement include"]),
        (
            "\n{{ db.password }}",
            &["2: db is not defined; write secret(\"NAME\") for a secret"],
        ),
        (
            "{{ \"a\"|b64 }}\n{% if 1 is odder or 2 is not evener %}{% endif %}",
            &[
                "1: unknown filter \"b64\"",
                "2: unknown test \"odder\"",
                "2: unknown test \"evener\"",
            ],
        ),
        (
            "{% set x = 1 %}{{ x }}{% for y in range(3) %}{{ loop.index }}{{ y }}{% endfor %}\
             {{ 1 is odd }}{{ x is not defined }}",
            &[],
        ),
        (
            "{% macro m(a) %}{{ a|upper }}{% endmacro %}{{ m(1) }}\
             {% set n = namespace(v=1) %}{{ n.v }}",
            &[],
        ),
        (
            "{# {{ nothing|here }} #}{% raw %}{{ nor|here }}{% endraw %} secret(\"text\")",
            &[],
        ),
    ] {
        assert_eq!(errors(source), expected, "{source}");
    }
}

#[test]
fn mentions_are_the_literal_names_with_their_lines() {
    let source = "{{ secret('a').value }}\n\
                  {# secret('b') #}{% raw %}{{ secret('c') }}{% endraw %}\n\
                  {% if env('X') is defined %}{{ secret(\"d-e.f\") }}{% endif %}\
                  {{ secret('g' ~ 'h') }}";
    let mention = |secret: &str, line| Mention {
        secret: secret.into(),
        line,
    };
    assert_eq!(
        template(source).mentions(),
        [mention("a", 1), mention("d-e.f", 3)]
    );
}

#[test]
fn missing_secrets_are_reported_one_step_at_a_time() {
    let template =
        template(r#"{{ secret("a").value }}{{ secret("a").previous }}{{ secret("b").value }}"#);
    let mut values = Values::new();
    let pass = template.render(&values);
    assert_eq!(pass.missing, [Missing::Secret("a".into())]);
    assert_eq!(
        pass.result.expect_err("missing").message,
        "the secret a is not available yet"
    );
    values.insert(
        "a".into(),
        SecretInput {
            current: value("A", "1"),
            previous: None,
        },
    );
    assert_eq!(
        template.render(&values).missing,
        [Missing::Previous("a".into()), Missing::Secret("b".into())]
    );
    values.insert(
        "a".into(),
        SecretInput {
            current: value("A", "1"),
            previous: Some(Some(value("P", "0"))),
        },
    );
    values.insert(
        "b".into(),
        SecretInput {
            current: value("B", "1"),
            previous: None,
        },
    );
    let pass = template.render(&values);
    assert!(pass.missing.is_empty());
    assert_eq!(pass.used, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(**pass.result.expect("rendered"), *b"APB");
}
