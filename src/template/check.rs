//! Checks a template before it is rendered: which secrets it names, and whether the rest of what it
//! names exists.

use std::collections::BTreeSet;

use minijinja::{Environment, ErrorKind, machinery::Token, machinery::tokenize};

use super::{Mention, TemplateError};

/// The function that returns a secret.
const SECRET: &str = "secret";

/// The longest tag, in tokens. The parser's stack grows with it.
const MAX_TAG_TOKENS: usize = 1000;
/// The most `elif`s in a template. The parser's stack grows with them, too.
const MAX_ELIFS: usize = 100;

/// Refuses a template that is nested too deeply to be parsed.
pub(super) fn nesting(source: &str) -> Result<(), TemplateError> {
    let (mut length, mut elifs) = (0, 0);
    let mut is_first = false;
    for (token, line) in tokens(source) {
        let error = |message: String| {
            Err(TemplateError {
                line: Some(line),
                message,
            })
        };
        length += 1;
        elifs += usize::from(is_first && matches!(token, Token::Ident("elif")));
        is_first = matches!(token, Token::BlockStart);
        if matches!(token, Token::VariableEnd | Token::BlockEnd) {
            length = 0;
        }
        if length > MAX_TAG_TOKENS {
            return error(format!("a tag has more than {MAX_TAG_TOKENS} tokens"));
        }
        if elifs > MAX_ELIFS {
            return error(format!("the template has more than {MAX_ELIFS} elif"));
        }
    }
    Ok(())
}

/// Returns the secrets that a template names literally, or every error in it.
pub(super) fn examine(
    environment: &Environment<'_>,
    name: &str,
    source: &str,
) -> Result<Vec<Mention>, Vec<TemplateError>> {
    let tokens = tokens(source);
    let mut errors = undefined(environment, name, &tokens);
    let mut mentions = Vec::new();
    for (at, (token, line)) in tokens.iter().enumerate() {
        let before = at
            .checked_sub(1)
            .and_then(|before| tokens.get(before))
            .map(|(token, _)| token);
        let after: Vec<_> = tokens[at + 1..]
            .iter()
            .take(3)
            .map(|(token, _)| token)
            .collect();
        let mut error = |what: &str, name: &str| {
            errors.push(TemplateError {
                line: Some(*line),
                message: format!("unknown {what} {name:?}"),
            })
        };
        match (before, token, &*after) {
            // A member that happens to have such a name.
            (Some(Token::Dot), ..) => {}
            (_, Token::Pipe, [Token::Ident(filter), ..]) if !has_filter(environment, filter) => {
                error("filter", filter)
            }
            (
                _,
                Token::Ident("is"),
                [Token::Ident("not"), Token::Ident(test), ..] | [Token::Ident(test), ..],
            ) if *test != "not" && !has_test(environment, test) => {
                error("test", test);
            }
            (_, Token::Ident(SECRET), [Token::ParenOpen, literal, Token::ParenClose]) => {
                let secret = match literal {
                    Token::Str(text) => (*text).to_owned(),
                    Token::String(text) => text.to_string(),
                    // A name that is computed when the template is rendered.
                    _ => continue,
                };
                mentions.push(Mention {
                    secret,
                    line: *line,
                });
            }
            _ => {}
        }
    }
    errors.sort_by_key(|error| error.line);
    if errors.is_empty() {
        Ok(mentions)
    } else {
        Err(errors)
    }
}

/// Returns the tokens inside of tags, with their lines.
fn tokens(source: &str) -> Vec<(Token<'_>, usize)> {
    let tokens = tokenize(source, false, super::syntax()).map_while(Result::ok);
    tokens
        .map(|(token, span)| (token, usize::from(span.start_line)))
        .collect()
}

/// Returns the variables and functions that are neither set in the template nor built in.
fn undefined(
    environment: &Environment<'_>,
    name: &str,
    tokens: &[(Token<'_>, usize)],
) -> Vec<TemplateError> {
    let used = environment
        .get_template(name)
        .map(|template| template.undeclared_variables(false))
        .unwrap_or_default();
    let known: BTreeSet<_> = environment
        .globals()
        .map(|(name, _)| name)
        .chain([SECRET])
        .collect();
    let unknown = used.iter().filter(|name| !known.contains(name.as_str()));
    let error = |name: &String| {
        let mention = tokens
            .iter()
            .find(|(token, _)| matches!(token, Token::Ident(ident) if ident == name));
        let message = format!("{name} is not defined; write secret(\"NAME\") for a secret");
        TemplateError {
            line: mention.map(|(_, line)| *line),
            message,
        }
    };
    unknown.map(error).collect()
}

fn has_filter(environment: &Environment<'_>, name: &str) -> bool {
    let tried = environment.empty_state().apply_filter(name, &[]);
    !tried.is_err_and(|error| error.kind() == ErrorKind::UnknownFilter)
}

fn has_test(environment: &Environment<'_>, name: &str) -> bool {
    let tried = environment.empty_state().perform_test(name, &[]);
    !tried.is_err_and(|error| error.kind() == ErrorKind::UnknownTest)
}
