//! What a rendered file contains.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use super::target::real;
use crate::{
    config::{
        Secrets,
        reader::{Parsed, Section, Value, all},
    },
    model::{Conversion, SecretName},
    template::Template,
};

/// The longest template, in bytes.
const LONGEST_TEMPLATE: u64 = 1 << 20;

/// The keys of a [`Conversion`].
const CONVERSIONS: [&str; 2] = ["decode", "trim"];

/// What a rendered file contains.
#[derive(Debug, Clone)]
pub enum Content {
    /// One secret, or a member of it.
    Secret {
        /// The secret.
        name: SecretName,
        /// The member of its value, which must then be a JSON object.
        field: Option<String>,
        /// What is made of it.
        conversion: Conversion,
    },
    /// A template's output.
    Template(Arc<Template>),
}

pub(super) fn content(
    section: &Section<'_>,
    secrets: Option<&Secrets>,
    target: Option<&Path>,
) -> Parsed<Content> {
    let (secret, field) = (section.optional("secret"), section.optional("field"));
    let (file, text) = (
        section.optional("template"),
        section.optional("template_text"),
    );
    let conversion = conversion(section);
    if secret.is_none()
        && let Some(key) = CONVERSIONS.iter().find(|key| section.has(key))
    {
        return Err(section.missing(key, "requires secret; a template has filters"));
    }
    match (secret, file, text, field) {
        (Some(secret), None, None, field) => {
            let name = known(&secret, secrets);
            let field = field.map(|field| field.string()).transpose();
            Ok(Content::Secret {
                name: name?,
                field: field?,
                conversion: conversion?,
            })
        }
        (None, Some(file), None, None) => template_file(&file, secrets, target),
        (None, None, Some(text), None) => template(&text, "template_text", text.text()?, secrets),
        (None, None, None, None) => Err(section.missing(
            "secret",
            "is required, unless template or template_text is set",
        )),
        (None, _, _, Some(field)) => {
            Err(field.missing("requires secret; it names a member of that secret's value"))
        }
        _ => Err(section.problem("secret, template and template_text are mutually exclusive")),
    }
}

fn conversion(section: &Section<'_>) -> Parsed<Conversion> {
    let mut conversion = Conversion::default();
    let set = CONVERSIONS.map(|key| {
        section.maybe(key, |value| {
            let set = conversion.set(key, value.text()?);
            set.map_err(|error| value.problem(error)).map(drop)
        })
    });
    all(set.into_iter())?;
    Ok(conversion)
}

fn known(value: &Value<'_>, secrets: Option<&Secrets>) -> Parsed<SecretName> {
    let name: SecretName = value.parsed()?;
    if secrets.is_none_or(|secrets| secrets.find(name.as_str()).is_some()) {
        Ok(name)
    } else {
        Err(value.missing(format_args!(
            "unknown secret {:?}; no [[secret]] matches it",
            name.as_str()
        )))
    }
}

fn template_file(
    value: &Value<'_>,
    secrets: Option<&Secrets>,
    target: Option<&Path>,
) -> Parsed<Content> {
    let path = value.path()?;
    if target.is_some_and(|target| real(target) == real(&path)) {
        return Err(value.problem("is the same file as `file`, which is written"));
    }
    match read_template(&path) {
        Ok(text) => template(value, &path.display().to_string(), &text, secrets),
        Err(error) => Err(value.problem(format_args!("can't read {}: {error}", path.display()))),
    }
}

fn read_template(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("not a regular file".into());
    }
    let mut text = String::new();
    file.take(LONGEST_TEMPLATE + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > LONGEST_TEMPLATE {
        Err(format!("longer than {LONGEST_TEMPLATE} bytes"))
    } else {
        Ok(text)
    }
}

/// Parses a template and checks that every secret in it is configured.
fn template(
    value: &Value<'_>,
    name: &str,
    source: &str,
    secrets: Option<&Secrets>,
) -> Parsed<Content> {
    let problem = |line: Option<usize>, message: &str| {
        let position = line.map_or_else(|| name.to_owned(), |line| format!("{name}:{line}"));
        value.problem(format_args!("{position}: {message}"))
    };
    let template = Template::parse(name, source.to_owned()).map_err(|faults| {
        let reported: Vec<_> = faults
            .iter()
            .map(|fault| problem(fault.line, &fault.message))
            .collect();
        reported
            .first()
            .copied()
            .unwrap_or_else(|| problem(None, "invalid template"))
    })?;
    let is_known = |secret: &str| secrets.is_none_or(|secrets| secrets.find(secret).is_some());
    let unknown = template
        .mentions()
        .iter()
        .filter(|mention| !is_known(&mention.secret))
        .map(|mention| {
            Err::<(), _>(value.missing(format_args!(
                "{name}:{}: unknown secret {:?}; no [[secret]] matches it",
                mention.line, mention.secret
            )))
        });
    all(unknown)?;
    Ok(Content::Template(Arc::new(template)))
}
