//! Secrets as templates see them: `secret("name")`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Object, ObjectRepr, Serde},
};
use serde_json::value::RawValue;

/// A value, and what its provider calls it.
#[derive(Clone)]
pub struct Held {
    /// The value.
    pub bytes: Bytes,
    /// The version.
    pub version: String,
}

/// What is given of one secret.
#[derive(Clone)]
pub struct Given {
    /// Its current value.
    pub current: Held,
    /// The value before, or that there is none; `None` if nobody has asked for it yet.
    pub previous: Option<Option<Held>>,
}

/// What is given to a template, by name.
pub type Values = BTreeMap<String, Given>;

/// What a template asked for and was not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// A secret.
    Secret(String),
    /// The value before the current one of a secret.
    Previous(String),
}

/// A detail that was written here and may therefore be told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Own(pub(super) String);

impl Own {
    pub(super) fn error(message: impl Into<String>) -> Error {
        Error::from(ErrorKind::InvalidOperation).with_source(Self(message.into()))
    }
}

/// What is given to one rendering, and what it asked for.
pub(super) struct Trace {
    given: Values,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    used: BTreeSet<String>,
    wants: Vec<Want>,
    /// The last member that wasn't there, and whose it should have been.
    missing: Option<(String, String)>,
}

impl Trace {
    pub(super) fn new(given: Values) -> Self {
        Self {
            given,
            asked: Mutex::default(),
        }
    }

    pub(super) fn take(&self) -> (BTreeSet<String>, Vec<Want>, Option<(String, String)>) {
        let Asked {
            used,
            wants,
            missing,
        } = std::mem::take(&mut *self.asked());
        (used, wants, missing)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The function `secret`.
pub(super) struct Secrets(pub(super) Arc<Trace>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}

impl Object for Secrets {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, arguments: &[Value]) -> Result<Value, Error> {
        let [name] = arguments else {
            return Err(Own::error(
                "secret takes one name, such as secret(\"orders-db\")",
            ));
        };
        let name = name
            .as_str()
            .ok_or_else(|| Own::error("secret takes a name, which is text"))?;
        let mut asked = self.0.asked();
        asked.used.insert(name.to_owned());
        let Some(given) = self.0.given.get(name) else {
            asked.wants.push(Want::Secret(name.to_owned()));
            return Err(Own::error(format!("the secret {name} is not there yet")));
        };
        drop(asked);
        let (held, previous) = (given.current.clone(), Some(given.previous.clone()));
        Ok(Value::from_object(Secret {
            trace: Arc::clone(&self.0),
            name: name.to_owned(),
            held,
            previous,
        }))
    }
}

/// One value of a secret. It prints as its text.
struct Secret {
    trace: Arc<Trace>,
    name: String,
    held: Held,
    /// The value before it; nothing is known before the one before.
    previous: Option<Option<Option<Held>>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("secret").field(&self.name).finish()
    }
}

impl Secret {
    fn text(&self) -> Result<&str, Error> {
        let binary = |_| {
            Own::error(format!(
                "the secret {} is not text; take its .base64",
                self.name
            ))
        };
        std::str::from_utf8(&self.held.bytes).map_err(binary)
    }

    fn members(&self) -> Option<BTreeMap<String, &RawValue>> {
        serde_json::from_slice(&self.held.bytes).ok()
    }

    fn fields(&self) -> Option<Value> {
        Some(Value::from_pairs(
            self.members()?
                .into_iter()
                .map(|(name, raw)| (name, member(raw))),
        ))
    }

    fn the_one_before(&self) -> Option<Value> {
        let held = match self.previous.as_ref()? {
            Some(Some(held)) => held.clone(),
            Some(None) => return Some(Value::from(())),
            None => {
                self.trace
                    .asked()
                    .wants
                    .push(Want::Previous(self.name.clone()));
                return Some(Value::from(()));
            }
        };
        let (trace, name) = (Arc::clone(&self.trace), self.name.clone());
        Some(Value::from_object(Self {
            trace,
            name,
            held,
            previous: None,
        }))
    }

    fn find(&self, key: &str) -> Option<Value> {
        match key {
            "value" => Some(self.text().map_or_else(Value::from, Value::from)),
            "base64" => Some(STANDARD.encode(&self.held.bytes).into()),
            "version" => Some(self.held.version.as_str().into()),
            "name" => Some(self.name.as_str().into()),
            "fields" => self.fields(),
            "previous" => self.the_one_before(),
            field => self.members()?.get(field).map(|raw| member(raw)),
        }
    }
}

impl Object for Secret {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let found = self.find(key);
        if found.is_none() {
            self.trace.asked().missing = Some((self.name.clone(), key.to_owned()));
        }
        found
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().map_err(|_| fmt::Error)?)
    }
}

/// A member of a JSON object: text as text; a number that would not print as it stands there as text, too.
fn member(raw: &RawValue) -> Value {
    let number = || {
        let number: serde_json::Number = serde_json::from_str(raw.get()).ok()?;
        let whole = number
            .as_i64()
            .map(Value::from)
            .or_else(|| number.as_u64().map(Value::from));
        whole
            .or_else(|| number.as_f64().map(Value::from))
            .filter(|number| number.to_string() == raw.get())
    };
    match raw.get().bytes().next() {
        Some(b'0'..=b'9' | b'-') => number().unwrap_or_else(|| Value::from(raw.get())),
        _ => match serde_json::from_str::<serde_json::Value>(raw.get()) {
            Ok(json) => Value::from(Serde(json)),
            Err(_) => Value::from(Own::error("a member of the secret is nested too deep")),
        },
    }
}
