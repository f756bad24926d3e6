//! What can be told of a template before it is ever rendered: the names that it uses, and those of them that there aren't.

use std::collections::BTreeSet;

use minijinja::{Environment, ErrorKind, machinery::Token, machinery::tokenize};

use super::{Fault, Mention};

/// The function that gives secrets.
const SECRET: &str = "secret";

/// The longest tag, in tokens, and the most `elif`s of a template: the parser's stack grows with either.
const LONGEST_TAG: usize = 1000;
const MOST_ELIFS: usize = 100;

/// Whether a template is shallow enough to be parsed.
pub(super) fn nesting(source: &str) -> Result<(), Fault> {
    let (mut length, mut elifs) = (0, 0);
    let mut is_first = false;
    for (token, line) in tokens(source) {
        let fault = |message: String| {
            Err(Fault {
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
        if length > LONGEST_TAG {
            return fault(format!(
                "a tag is longer than {LONGEST_TAG} words and signs"
            ));
        }
        if elifs > MOST_ELIFS {
            return fault(format!("there are more than {MOST_ELIFS} times elif"));
        }
    }
    Ok(())
}

/// The secrets that a valid template mentions.
pub(super) fn examine(
    environment: &Environment<'_>,
    name: &str,
    source: &str,
) -> Result<Vec<Mention>, Vec<Fault>> {
    let tokens = tokens(source);
    let mut faults = undefined(environment, name, &tokens);
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
        let mut fault = |what: &str, name: &str| {
            faults.push(Fault {
                line: Some(*line),
                message: format!("there is no {what} {name:?}"),
            })
        };
        match (before, token, &*after) {
            // A member that happens to be called so.
            (Some(Token::Dot), ..) => {}
            (_, Token::Pipe, [Token::Ident(filter), ..]) if !has_filter(environment, filter) => {
                fault("filter", filter)
            }
            (
                _,
                Token::Ident("is"),
                [Token::Ident("not"), Token::Ident(test), ..] | [Token::Ident(test), ..],
            ) if *test != "not" && !has_test(environment, test) => {
                fault("test", test);
            }
            (_, Token::Ident(SECRET), [Token::ParenOpen, literal, Token::ParenClose]) => {
                let secret = match literal {
                    Token::Str(text) => (*text).to_owned(),
                    Token::String(text) => text.to_string(),
                    // A name that is known when the template is rendered.
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
    faults.sort_by_key(|fault| fault.line);
    if faults.is_empty() {
        Ok(mentions)
    } else {
        Err(faults)
    }
}

/// What the template is made of, without the text around its tags; each with its line.
fn tokens(source: &str) -> Vec<(Token<'_>, usize)> {
    let tokens = tokenize(source, false, super::syntax()).map_while(Result::ok);
    tokens
        .map(|(token, span)| (token, usize::from(span.start_line)))
        .collect()
}

/// The variables and functions that are neither set in the template nor known.
fn undefined(
    environment: &Environment<'_>,
    name: &str,
    tokens: &[(Token<'_>, usize)],
) -> Vec<Fault> {
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
    let fault = |name: &String| {
        let mention = tokens
            .iter()
            .find(|(token, _)| matches!(token, Token::Ident(ident) if ident == name));
        let message = format!("{name} is not defined: a secret is written secret(\"NAME\")");
        Fault {
            line: mention.map(|(_, line)| *line),
            message,
        }
    };
    unknown.map(fault).collect()
}

fn has_filter(environment: &Environment<'_>, name: &str) -> bool {
    let tried = environment.empty_state().apply_filter(name, &[]);
    !tried.is_err_and(|error| error.kind() == ErrorKind::UnknownFilter)
}

fn has_test(environment: &Environment<'_>, name: &str) -> bool {
    let tried = environment.empty_state().perform_test(name, &[]);
    !tried.is_err_and(|error| error.kind() == ErrorKind::UnknownTest)
}
