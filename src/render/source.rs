//! Renders the content of a file from secrets.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::RenderFailure;
use crate::{
    backend::ErrorKind,
    config::Content,
    encoding::NotBase64,
    model::Conversion,
    secrets::{Freshness, GetError, SecretRequest, Secrets, Served, Value, VersionSelector},
    template::{Missing, SecretInput, Template, Values, VersionedValue},
};

/// The most secrets that a template can use.
const MAX_SECRETS: usize = 1000;

/// Placeholder for a secret name that is not shown. It is not a valid name.
const COMPUTED_NAME: &str = "a secret whose name the template computes";

/// A value in a file.
#[derive(Clone)]
pub(super) struct UsedSecret {
    pub(super) secret: String,
    pub(super) value: Arc<Value>,
    /// What the file contains of it, if that was decoded.
    pub(super) decoded: Option<Arc<Zeroizing<Vec<u8>>>>,
}

impl UsedSecret {
    /// Whether it is the same version of the same secret.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.secret == other.secret && self.value.version() == other.value.version()
    }
}

/// What a file should contain.
pub(super) struct Rendered {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) used: Vec<UsedSecret>,
    /// When a previous value in it may expire without a change being announced.
    pub(super) previous_end: Option<Timestamp>,
}

/// What a template is rendered with.
#[derive(Default)]
struct Inputs {
    values: Values,
    used: Vec<UsedSecret>,
    previous_end: Option<Timestamp>,
}

/// Renders content from the current secrets.
pub(super) struct ContentSource {
    secrets: Arc<Secrets>,
    /// The secrets that the last attempt requested.
    pub(super) requested: BTreeSet<String>,
}

impl ContentSource {
    pub(super) fn new(secrets: Arc<Secrets>) -> Self {
        Self {
            secrets,
            requested: BTreeSet::new(),
        }
    }

    pub(super) async fn render(&mut self, content: &Content) -> Result<Rendered, RenderFailure> {
        match content {
            Content::Secret {
                name,
                field,
                conversion,
            } => {
                self.secret(name.as_str(), field.as_deref(), *conversion)
                    .await
            }
            Content::Template { template, .. } => self.template(template).await,
        }
    }

    async fn secret(
        &mut self,
        name: &str,
        field: Option<&str>,
        conversion: Conversion,
    ) -> Result<Rendered, RenderFailure> {
        self.requested = BTreeSet::from([name.to_owned()]);
        let value = self.current(name, name).await?.value;
        let part = match field {
            None => Ok(Zeroizing::new(value.bytes().to_vec())),
            Some(field) => {
                let part = value.field(field).and_then(|field| field.decode());
                part.map_err(|why| unavailable(name, &format!("its value {}", why.explain(field))))
            }
        };
        let bytes = conversion.apply(part?).map_err(|NotBase64| {
            let why = format!("`decode`: what it should decode is {}", NotBase64::EXPECTED);
            unavailable(name, &why)
        })?;
        let decoded = conversion.decode_base64.then(|| Arc::new(bytes.clone()));
        Ok(Rendered {
            bytes,
            used: vec![UsedSecret {
                secret: name.to_owned(),
                value,
                decoded,
            }],
            previous_end: None,
        })
    }

    /// Renders until no secret is missing: a template can compute a name from another secret.
    pub(super) async fn template(
        &mut self,
        template: &Arc<Template>,
    ) -> Result<Rendered, RenderFailure> {
        let mut inputs = Inputs::default();
        loop {
            let (attempt, values) = (Arc::clone(template), inputs.values.clone());
            let pass = tokio::task::spawn_blocking(move || attempt.render(&values))
                .await
                .map_err(|error| template_failure(format!("rendering was aborted: {error}")))?;
            self.requested.clone_from(&pass.used);
            if pass.missing.is_empty() {
                let bytes = pass.result.map_err(|error| {
                    let line = error
                        .line
                        .map_or_else(String::new, |line| format!(":{line}"));
                    template_failure(format!("{}{line}: {}", template.name(), error.message))
                })?;
                inputs.used.retain(|used| pass.used.contains(&used.secret));
                return Ok(Rendered {
                    bytes,
                    used: inputs.used,
                    previous_end: inputs.previous_end,
                });
            }
            if inputs.used.len() > MAX_SECRETS {
                let name = template.name();
                return Err(template_failure(format!(
                    "{name}: it uses more than {MAX_SECRETS} secrets"
                )));
            }
            for missing in pass.missing {
                self.provide(template, missing, &mut inputs).await?;
            }
        }
    }

    async fn provide(
        &self,
        template: &Template,
        missing: Missing,
        inputs: &mut Inputs,
    ) -> Result<(), RenderFailure> {
        match missing {
            Missing::Secret(name) if !inputs.values.contains_key(&name) => {
                let shown = self.shown(template, &name);
                let value = self.current(&name, shown).await?.value;
                let input = SecretInput {
                    current: versioned(&value),
                    previous: None,
                };
                inputs.values.insert(name.clone(), input);
                inputs.used.push(UsedSecret {
                    secret: name,
                    value,
                    decoded: None,
                });
            }
            Missing::Secret(_) => {}
            Missing::Previous(name) => {
                let previous = self.previous(&name, self.shown(template, &name)).await?;
                if let Some((_, end)) = &previous {
                    inputs.previous_end = inputs.previous_end.into_iter().chain(*end).min();
                }
                let value = previous.map(|(value, _)| value);
                if let Some(input) = inputs.values.get_mut(&name) {
                    input.previous = Some(value.as_ref().map(versioned));
                }
                inputs.used.extend(value.map(|value| UsedSecret {
                    secret: name,
                    value,
                    decoded: None,
                }));
            }
        }
        Ok(())
    }

    /// Returns the name of a secret as errors show it. A name that is not configured may be a value
    /// that the template used as a name.
    fn shown<'n>(&self, template: &Template, name: &'n str) -> &'n str {
        let is_public = self.secrets.is_configured(name)
            || template
                .mentions()
                .iter()
                .any(|mention| mention.secret == name);
        if is_public { name } else { COMPUTED_NAME }
    }

    async fn current(&self, name: &str, shown: &str) -> Result<Served, RenderFailure> {
        self.get(name, shown, VersionSelector::Current)
            .await?
            .map_err(|error| unavailable(shown, &reason(error)))
    }

    /// Returns the previous value while it is served, and when it may expire without a change being
    /// announced.
    async fn previous(
        &self,
        name: &str,
        shown: &str,
    ) -> Result<Option<(Arc<Value>, Option<Timestamp>)>, RenderFailure> {
        let served = match self.get(name, shown, VersionSelector::Previous).await? {
            Ok(served) => served,
            Err(GetError::PreviousExpired) => return Ok(None),
            Err(GetError::Provider(error)) if error.kind == ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => {
                return Err(unavailable(
                    shown,
                    &format!("its previous value: {}", reason(error)),
                ));
            }
        };
        let current = self.current(name, shown).await?.value;
        let ttl = self
            .secrets
            .get_or_add(name)
            .map(|secret| secret.cache().previous_ttl);
        let end = current
            .created_at()
            .zip(ttl)
            .and_then(|(created, ttl)| created.checked_add(ttl).ok());
        Ok(Some((served.value, end)))
    }

    async fn get(
        &self,
        name: &str,
        shown: &str,
        version: VersionSelector,
    ) -> Result<Result<Served, GetError>, RenderFailure> {
        let secret = self
            .secrets
            .get_or_add(name)
            .ok_or_else(|| unavailable(shown, "no such secret is configured"))?;
        Ok(secret
            .get(&SecretRequest {
                version,
                freshness: Freshness::Cached,
            })
            .await)
    }
}

fn versioned(value: &Arc<Value>) -> VersionedValue {
    VersionedValue {
        bytes: value.bytes().clone(),
        version: value.version().to_owned(),
    }
}

fn reason(error: GetError) -> String {
    match error {
        GetError::Provider(error) => error.to_string(),
        GetError::VersionTooOld { version } => format!("the current version is {version}"),
        GetError::PreviousExpired => "it is no longer served".into(),
    }
}

fn template_failure(message: String) -> RenderFailure {
    RenderFailure {
        reason: "template",
        message,
    }
}

fn unavailable(shown: &str, why: &str) -> RenderFailure {
    let secret = if shown == COMPUTED_NAME {
        COMPUTED_NAME.to_owned()
    } else {
        format!("the secret {shown}")
    };
    RenderFailure {
        reason: "secret",
        message: format!("{secret}: {why}"),
    }
}
