//! What a file is made of: the values of secrets, and what a template makes of them.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::Failure;
use crate::{
    backend::SecretFault,
    config::Content,
    secrets::{Ask, Demand, NoField, Refused, Secrets, Served, Value, Which},
    template::{Given, Held, Template, Values, Want},
};

/// The most secrets that one template may come to use.
const MOST: usize = 1000;

/// What a secret is called whose name isn't told. No secret has such a name.
const NAMELESS: &str = "a secret whose name the template makes up";

/// A value that stands in a file.
#[derive(Clone)]
pub(super) struct Used {
    pub(super) secret: String,
    pub(super) value: Arc<Value>,
}

impl Used {
    /// Whether it is the same version of the same secret.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.secret == other.secret && self.value.version() == other.value.version()
    }
}

/// What a file should hold.
pub(super) struct Made {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) used: Vec<Used>,
    /// When the value before a current one may be over, if no change tells.
    pub(super) previous_end: Option<Timestamp>,
}

/// Makes a file's content of what the secrets are now.
pub(super) struct Maker {
    secrets: Arc<Secrets>,
    /// The secrets that the last attempt asked for.
    pub(super) asked: BTreeSet<String>,
}

impl Maker {
    pub(super) fn new(secrets: Arc<Secrets>) -> Self {
        Self {
            secrets,
            asked: BTreeSet::new(),
        }
    }

    pub(super) async fn make(&mut self, content: &Content) -> Result<Made, Failure> {
        match content {
            Content::Secret { name, field } => self.secret(name.as_str(), field.as_deref()).await,
            Content::Template(template) => self.render(template).await,
        }
    }

    async fn secret(&mut self, name: &str, field: Option<&str>) -> Result<Made, Failure> {
        self.asked = BTreeSet::from([name.to_owned()]);
        let value = self.current(name, name).await?.value;
        let bytes = match field {
            None => Zeroizing::new(value.bytes().to_vec()),
            Some(field) => value
                .field(field)
                .map(|field| field.decode())
                .map_err(|why| {
                    let why = match why {
                        NoField::NotAnObject => {
                            "its value is not a JSON object, so it has no fields".to_owned()
                        }
                        NoField::Missing => format!("its value has no field {field:?}"),
                    };
                    unavailable(name, &why)
                })?,
        };
        Ok(Made {
            bytes,
            used: vec![Used {
                secret: name.to_owned(),
                value,
            }],
            previous_end: None,
        })
    }

    /// Renders until nothing is missing: a template may ask for what it found in another secret.
    async fn render(&mut self, template: &Arc<Template>) -> Result<Made, Failure> {
        let (mut given, mut used) = (Values::new(), Vec::new());
        let mut previous_end = None;
        loop {
            let (attempt, values) = (Arc::clone(template), given.clone());
            let pass = tokio::task::spawn_blocking(move || attempt.render(&values)).await;
            let pass = pass.map_err(|error| Failure {
                reason: "template",
                message: format!("rendering was given up: {error}"),
            })?;
            self.asked.clone_from(&pass.used);
            if pass.wants.is_empty() {
                let bytes = pass.result.map_err(|fault| {
                    let line = fault
                        .line
                        .map_or_else(String::new, |line| format!(":{line}"));
                    Failure {
                        reason: "template",
                        message: format!("{}{line}: {}", template.name(), fault.message),
                    }
                })?;
                used.retain(|used: &Used| pass.used.contains(&used.secret));
                return Ok(Made {
                    bytes,
                    used,
                    previous_end,
                });
            }
            if used.len() > MOST {
                return Err(Failure {
                    reason: "template",
                    message: format!("it asks for more than {MOST} secrets"),
                });
            }
            for want in pass.wants {
                match want {
                    Want::Secret(name) if !given.contains_key(&name) => {
                        let value = self
                            .current(&name, self.shown(template, &name))
                            .await?
                            .value;
                        given.insert(
                            name.clone(),
                            Given {
                                current: held(&value),
                                previous: None,
                            },
                        );
                        used.push(Used {
                            secret: name,
                            value,
                        });
                    }
                    Want::Previous(name) => {
                        let previous = self.previous(&name, self.shown(template, &name)).await?;
                        if let Some((_, end)) = &previous {
                            previous_end = previous_end.into_iter().chain(*end).min();
                        }
                        let value = previous.map(|(value, _)| value);
                        if let Some(given) = given.get_mut(&name) {
                            given.previous = Some(value.as_ref().map(held));
                        }
                        used.extend(value.map(|value| Used {
                            secret: name,
                            value,
                        }));
                    }
                    Want::Secret(_) => {}
                }
            }
        }
    }

    /// What a secret that a template asks for is called where it is told of. A name that stands for nothing may be a value that the
    /// template took for a name.
    fn shown<'n>(&self, template: &Template, name: &'n str) -> &'n str {
        let is_public = self.secrets.knows(name)
            || template
                .mentions()
                .iter()
                .any(|mention| mention.secret == name);
        if is_public { name } else { NAMELESS }
    }

    async fn current(&self, name: &str, shown: &str) -> Result<Served, Failure> {
        match self.ask(name, shown, Which::Current).await? {
            Ok(served) => Ok(served),
            Err(refused) => Err(unavailable(shown, &why(refused))),
        }
    }

    /// The value before the current one while it is handed out, and when that may end without a change that tells.
    async fn previous(
        &self,
        name: &str,
        shown: &str,
    ) -> Result<Option<(Arc<Value>, Option<Timestamp>)>, Failure> {
        let served = match self.ask(name, shown, Which::Previous).await? {
            Ok(served) => served,
            Err(Refused::Over) => return Ok(None),
            Err(Refused::Provider(error)) if error.fault == SecretFault::NotFound => {
                return Ok(None);
            }
            Err(refused) => {
                return Err(unavailable(
                    shown,
                    &format!("the value before the current one: {}", why(refused)),
                ));
            }
        };
        let current = self.current(name, shown).await?.value;
        let ttl = self
            .secrets
            .find(name)
            .map(|secret| secret.settings().keeping.previous_ttl);
        let end = current
            .created_at()
            .zip(ttl)
            .and_then(|(made, ttl)| made.checked_add(ttl).ok());
        Ok(Some((served.value, end)))
    }

    async fn ask(
        &self,
        name: &str,
        shown: &str,
        which: Which,
    ) -> Result<Result<Served, Refused>, Failure> {
        let secret = self
            .secrets
            .find(name)
            .ok_or_else(|| unavailable(shown, "no such secret is configured"))?;
        Ok(secret
            .get(&Ask {
                which,
                demand: Demand::Kept,
            })
            .await)
    }
}

fn held(value: &Arc<Value>) -> Held {
    Held {
        bytes: value.bytes().clone(),
        version: value.version().to_owned(),
    }
}

fn why(refused: Refused) -> String {
    match refused {
        Refused::Provider(error) => error.to_string(),
        Refused::TooOld { version } => format!("there is only version {version}"),
        Refused::Over => "it is not handed out any more".into(),
    }
}

fn unavailable(shown: &str, why: &str) -> Failure {
    let secret = if shown == NAMELESS {
        NAMELESS.to_owned()
    } else {
        format!("the secret {shown}")
    };
    Failure {
        reason: "secret",
        message: format!("{secret}: {why}"),
    }
}
