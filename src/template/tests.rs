use super::*;

fn held(text: impl Into<bytes::Bytes>, version: &str) -> Held {
    Held {
        bytes: text.into(),
        version: version.into(),
    }
}

fn values() -> Values {
    let json = r#"{"password":"a'b\"$c","port":5432,"ratio":1.10,"half":0.5,"tls":{"on":true},"value":"inner","list":[1,"x"],"none":null}"#;
    let given = |current: Held, previous: Option<Held>| Given {
        current,
        previous: Some(previous),
    };
    Values::from([
        (
            "db".into(),
            given(held(json, "7"), Some(held(r#"{"password":"old"}"#, "6"))),
        ),
        ("token".into(), given(held("t0k\n", "1"), None)),
        ("blob".into(), given(held(&[0xff, 0x00][..], "1"), None)),
    ])
}

fn template(source: &str) -> Template {
    Template::parse("t", source.into()).unwrap_or_else(|faults| panic!("{source}: {faults:?}"))
}

fn render(source: &str) -> Result<String, String> {
    let pass = template(source).render(&values());
    let text = |bytes: Zeroizing<Vec<u8>>| String::from_utf8(bytes.to_vec()).expect("text");
    pass.result
        .map(text)
        .map_err(|fault| format!("{}: {}", fault.line.unwrap_or(0), fault.message))
}

fn faults(source: &str) -> Vec<String> {
    let faults = Template::parse("t", source.into())
        .err()
        .unwrap_or_default();
    faults
        .into_iter()
        .map(|fault| format!("{}: {}", fault.line.unwrap_or(0), fault.message))
        .collect()
}

#[test]
fn a_secret_is_its_text_its_members_and_the_one_before() {
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
        // Its own members go before those of the value.
        (r#"{{ secret("db").fields.value }}"#, "inner"),
        (
            r#"{{ secret("db").ratio }} {{ secret("db").tls|tojson }}"#,
            r#"1.10 {"on": true}"#,
        ),
        (
            r#"{{ secret("db").ratio|tojson }} {{ secret("db").half|tojson }} {{ secret("db").port|tojson }}"#,
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
        // The last newline stays, and nothing is escaped unless the template asks for it.
        ("a & b\n", "a & b\n"),
        (
            r#"{{ secret("db").password }}{% autoescape "html" %}{{ secret("db").password }}{% endautoescape %}"#,
            r#"a'b"$ca&#x27;b&quot;$c"#,
        ),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn filters_quote_for_what_reads_the_file() {
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

/// The shell itself says whether a word is quoted well.
#[test]
fn a_shell_reads_back_what_was_quoted() {
    let nasty = "a'b\"$HOME`id`\\n\n !*?~#;|&<>() é";
    let values = Values::from([(
        "s".into(),
        Given {
            current: held(nasty, "1"),
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
fn a_fault_says_where_and_what_and_quotes_no_value() {
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
            "1: the secret blob is not text; take its .base64",
        ),
        (
            "{{ secret(\"db\", 1) }}",
            "1: secret takes one name, such as secret(\"orders-db\")",
        ),
        ("{{ secret(7) }}", "1: secret takes a name, which is text"),
        (
            "{{ secret(\"token\").value|b64decode }}",
            "1: b64decode: this is not base64",
        ),
        (
            "{{ secret(\"token\").value|fromjson }}",
            "1: fromjson: this is not JSON",
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
        let fault = render(source).expect_err(source);
        assert_eq!(fault, expected, "{source}");
        assert!(!fault.contains("t0k"), "{fault}");
    }
}

#[test]
fn an_output_and_a_loop_without_end_are_refused() {
    let text = "0123456789".repeat(100);
    let endless = format!(
        "{{% for a in range(10000) %}}{{% for b in range(10000) %}}{text}{{% endfor %}}{{% endfor %}}"
    );
    assert!(
        render(&endless)
            .expect_err("too long")
            .contains("longer than")
    );
    let silent = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert!(render(silent).expect_err("too many").contains("steps"));
}

/// Each of these once ended the process.
#[test]
fn what_is_nested_too_deep_is_a_fault() {
    let sum = format!("\n{{{{ 1{} }}}}", "+1".repeat(100_000));
    assert_eq!(
        faults(&sum),
        ["2: a tag is longer than 1000 words and signs"]
    );
    assert_eq!(faults(&format!("{{{{ 1{} }}}}", "+1".repeat(490))), [""; 0]);
    let branches = |count| format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(count));
    assert_eq!(
        faults(&branches(50_000)),
        ["1: there are more than 100 times elif"]
    );
    assert_eq!(faults(&branches(100)), [""; 0]);
    for grown in ["[n.v]", "[n.v] + [1]", "n.v + [1]", "{'a': n.v}"] {
        let grow = format!("{{% for i in range(100000) %}}{{% set n.v = {grown} %}}{{% endfor %}}");
        let source = format!("{{% set n = namespace(v=[]) %}}{}", grow.repeat(20));
        assert!(render(&source).expect_err(grown).contains("steps"));
    }
}

#[test]
fn what_is_wrong_without_values_is_found_without_values() {
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
            &["2: db is not defined: a secret is written secret(\"NAME\")"],
        ),
        (
            "{{ \"a\"|b64 }}\n{% if 1 is odder or 2 is not evener %}{% endif %}",
            &[
                "1: there is no filter \"b64\"",
                "2: there is no test \"odder\"",
                "2: there is no test \"evener\"",
            ],
        ),
        (
            "{% set x = 1 %}{{ x }}{% for y in range(3) %}{{ loop.index }}{{ y }}{% endfor %}{{ 1 is odd }}{{ x is not defined }}",
            &[],
        ),
        (
            "{% macro m(a) %}{{ a|upper }}{% endmacro %}{{ m(1) }}{% set n = namespace(v=1) %}{{ n.v }}",
            &[],
        ),
        (
            "{# {{ nothing|here }} #}{% raw %}{{ nor|here }}{% endraw %} secret(\"text\")",
            &[],
        ),
    ] {
        assert_eq!(faults(source), expected, "{source}");
    }
}

#[test]
fn mentions_are_the_names_in_so_many_words_with_their_lines() {
    let source = "{{ secret('a').value }}\n{# secret('b') #}{% raw %}{{ secret('c') }}{% endraw %}\n{% if env('X') is defined %}{{ secret(\"d-e.f\") }}{% endif %}{{ secret('g' ~ 'h') }}";
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
fn what_is_wanted_is_told_one_step_at_a_time() {
    let template =
        template(r#"{{ secret("a").value }}{{ secret("a").previous }}{{ secret("b").value }}"#);
    let mut values = Values::new();
    let pass = template.render(&values);
    assert_eq!(pass.wants, [Want::Secret("a".into())]);
    assert_eq!(
        pass.result.expect_err("wants").message,
        "the secret a is not there yet"
    );
    values.insert(
        "a".into(),
        Given {
            current: held("A", "1"),
            previous: None,
        },
    );
    assert_eq!(
        template.render(&values).wants,
        [Want::Previous("a".into()), Want::Secret("b".into())]
    );
    values.insert(
        "a".into(),
        Given {
            current: held("A", "1"),
            previous: Some(Some(held("P", "0"))),
        },
    );
    values.insert(
        "b".into(),
        Given {
            current: held("B", "1"),
            previous: None,
        },
    );
    let pass = template.render(&values);
    assert!(pass.wants.is_empty());
    assert_eq!(pass.used, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(**pass.result.expect("rendered"), *b"APB");
}
