//! What a rendered file contains.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::target::real;
use crate::{
    config::{
        Secrets,
        reader::{Parsed, Section, Value, all},
    },
    files,
    model::{Conversion, SecretName},
    template::{Template, TemplateError},
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
    Template {
        /// The template, as it was when the config was read.
        template: Arc<Template>,
        /// The file that it is in, if it isn't in the config.
        file: Option<PathBuf>,
    },
}

/// Whether the same is rendered. What is in a template's file doesn't count: the file is followed.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Secret {
                    name,
                    field,
                    conversion,
                },
                Self::Secret {
                    name: other_name,
                    field: other_field,
                    conversion: other_conversion,
                },
            ) => (name, field, conversion) == (other_name, other_field, other_conversion),
            (
                Self::Template { template, file },
                Self::Template {
                    template: other_template,
                    file: other_file,
                },
            ) => match (file, other_file) {
                (None, None) => template.source() == other_template.source(),
                (file, other_file) => file == other_file,
            },
            _ => false,
        }
    }
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
        (None, None, Some(text), None) => template_text(&text, secrets),
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
    let loaded = load_template(&path, |name| is_known(secrets, name));
    accepted(value, loaded, Some(path))
}

fn template_text(value: &Value<'_>, secrets: Option<&Secrets>) -> Parsed<Content> {
    let source = value.text()?.to_owned();
    let checked = check("template_text", source, |name| is_known(secrets, name));
    accepted(value, checked, None)
}

fn is_known(secrets: Option<&Secrets>, name: &str) -> bool {
    secrets.is_none_or(|secrets| secrets.find(name).is_some())
}

/// Reports everything wrong with a template.
fn accepted(
    value: &Value<'_>,
    checked: Result<Template, Vec<TemplateFault>>,
    file: Option<PathBuf>,
) -> Parsed<Content> {
    match checked {
        Ok(template) => Ok(Content::Template {
            template: Arc::new(template),
            file,
        }),
        Err(faults) => {
            let reported = faults.iter().map(|fault| {
                Err::<(), _>(match fault {
                    TemplateFault::Invalid(_) => value.problem(fault),
                    TemplateFault::UnknownSecret(_) => value.missing(fault),
                })
            });
            all(reported)?;
            Err(value.problem("invalid template"))
        }
    }
}

/// Something wrong with a template.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateFault {
    /// It can't be read, or its syntax is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It uses a secret that isn't configured.
    #[error("{0}")]
    UnknownSecret(String),
}

/// Reads a template file and checks it. `is_known` says whether a secret is configured. Blocks.
///
/// # Errors
/// Everything wrong with it, each with its line.
pub(crate) fn load_template(
    path: &Path,
    is_known: impl Fn(&str) -> bool,
) -> Result<Template, Vec<TemplateFault>> {
    let shown = path.display().to_string();
    match read_template(path) {
        Ok(text) => check(&shown, text, is_known),
        Err(error) => Err(vec![TemplateFault::Invalid(format!(
            "can't read {shown}: {error}"
        ))]),
    }
}

fn read_template(path: &Path) -> Result<String, String> {
    let file = files::open_regular(path).map_err(|error| error.to_string())?;
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
fn check(
    name: &str,
    source: String,
    is_known: impl Fn(&str) -> bool,
) -> Result<Template, Vec<TemplateFault>> {
    let template = Template::parse(name, source).map_err(|faults| {
        let fault = |fault: &TemplateError| {
            let line = fault
                .line
                .map_or_else(String::new, |line| format!(":{line}"));
            TemplateFault::Invalid(format!("{name}{line}: {}", fault.message))
        };
        faults.iter().map(fault).collect::<Vec<_>>()
    })?;
    let mentions = template.mentions().iter();
    let unknown: Vec<_> = mentions
        .filter(|mention| !is_known(&mention.secret))
        .map(|mention| {
            TemplateFault::UnknownSecret(format!(
                "{name}:{}: unknown secret {:?}; no [[secret]] matches it",
                mention.line, mention.secret
            ))
        })
        .collect();
    if unknown.is_empty() {
        Ok(template)
    } else {
        Err(unknown)
    }
}
