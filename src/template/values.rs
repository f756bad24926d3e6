//! Secrets as templates see them: `secret("name")`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Object, ObjectRepr},
};

use super::json;

/// A value and its version.
#[derive(Clone)]
pub struct VersionedValue {
    pub(crate) bytes: Bytes,
    pub(crate) version: String,
}

/// The values of one secret.
#[derive(Clone)]
pub struct SecretInput {
    pub(crate) current: VersionedValue,
    /// The previous value, if there is one; None if it has not been looked up.
    pub(crate) previous: Option<Option<VersionedValue>>,
}

/// The secrets that a template is rendered with, by name.
pub type Values = BTreeMap<String, SecretInput>;

/// What a template used without having it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The secret of this name.
    Secret(String),
    /// The previous value of the secret of this name.
    Previous(String),
}

/// An error written here, which contains no value and is safe to show.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct SafeError(pub(super) String);

impl SafeError {
    pub(super) fn error(message: impl Into<String>) -> Error {
        Error::from(ErrorKind::InvalidOperation).with_source(Self(message.into()))
    }
}

/// The values of one rendering, and what it uses of them.
pub(super) struct Trace {
    values: Values,
    accesses: Mutex<Accesses>,
}

#[derive(Default)]
struct Accesses {
    used: BTreeSet<String>,
    missing: Vec<Missing>,
    /// The secret and the name of the last member that does not exist.
    undefined: Option<(String, String)>,
}

impl Trace {
    pub(super) fn new(values: Values) -> Self {
        Self {
            values,
            accesses: Mutex::default(),
        }
    }

    pub(super) fn take(&self) -> (BTreeSet<String>, Vec<Missing>, Option<(String, String)>) {
        let Accesses {
            used,
            missing,
            undefined,
        } = std::mem::take(&mut *self.accesses());
        (used, missing, undefined)
    }

    fn accesses(&self) -> MutexGuard<'_, Accesses> {
        self.accesses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The function `secret`. Each secret is converted once, so that a template that uses one in a loop
/// takes no more time and memory than one that uses it once.
pub(super) struct Secrets {
    trace: Arc<Trace>,
    found: Mutex<BTreeMap<String, Value>>,
}

impl Secrets {
    pub(super) fn new(trace: Arc<Trace>) -> Self {
        Self {
            trace,
            found: Mutex::default(),
        }
    }
}

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
            return Err(SafeError::error(
                "secret takes one name, such as secret(\"orders-db\")",
            ));
        };
        let name = name
            .as_str()
            .ok_or_else(|| SafeError::error("secret takes a name, which must be a string"))?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secret) = found.get(name) {
            return Ok(secret.clone());
        }
        let mut accesses = self.trace.accesses();
        accesses.used.insert(name.to_owned());
        let Some(input) = self.trace.values.get(name) else {
            accesses.missing.push(Missing::Secret(name.to_owned()));
            return Err(SafeError::error(format!(
                "the secret {name} is not available yet"
            )));
        };
        drop(accesses);
        let secret = Value::from_object(Secret {
            previous: Some(input.previous.clone()),
            ..Secret::new(&self.trace, name, input.current.clone())
        });
        found.insert(name.to_owned(), secret.clone());
        Ok(secret)
    }
}

/// One value of a secret. It renders as its text.
pub(super) struct Secret {
    trace: Arc<Trace>,
    name: String,
    value: VersionedValue,
    /// The value before this one; None if this is the previous value itself.
    previous: Option<Option<Option<VersionedValue>>>,
    text: OnceLock<Value>,
    base64: OnceLock<Value>,
    /// None if the value is not a JSON object.
    fields: OnceLock<Option<Value>>,
    previous_secret: OnceLock<Value>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("secret").field(&self.name).finish()
    }
}

impl Secret {
    fn new(trace: &Arc<Trace>, name: &str, value: VersionedValue) -> Self {
        Self {
            trace: Arc::clone(trace),
            name: name.to_owned(),
            value,
            previous: None,
            text: OnceLock::new(),
            base64: OnceLock::new(),
            fields: OnceLock::new(),
            previous_secret: OnceLock::new(),
        }
    }

    /// The length of its text, in bytes.
    pub(super) fn text_len(&self) -> usize {
        self.value.bytes.len()
    }

    fn text(&self) -> Result<&str, Error> {
        let binary = |_| {
            SafeError::error(format!(
                "the secret {} is not text; use its .base64",
                self.name
            ))
        };
        std::str::from_utf8(&self.value.bytes).map_err(binary)
    }

    fn fields(&self) -> Option<&Value> {
        let fields = self.fields.get_or_init(|| json::object(&self.value.bytes));
        fields.as_ref()
    }

    fn previous(&self) -> Option<Value> {
        let value = match self.previous.as_ref()? {
            Some(Some(value)) => value,
            Some(None) => return Some(Value::from(())),
            None => {
                self.trace
                    .accesses()
                    .missing
                    .push(Missing::Previous(self.name.clone()));
                return Some(Value::from(()));
            }
        };
        let secret = || Value::from_object(Self::new(&self.trace, &self.name, value.clone()));
        Some(self.previous_secret.get_or_init(secret).clone())
    }

    fn find(&self, key: &str) -> Option<Value> {
        match key {
            "value" => {
                let text = || self.text().map_or_else(Value::from, Value::from);
                Some(self.text.get_or_init(text).clone())
            }
            "base64" => {
                let base64 = || STANDARD.encode(&self.value.bytes).into();
                Some(self.base64.get_or_init(base64).clone())
            }
            "version" => Some(self.value.version.as_str().into()),
            "name" => Some(self.name.as_str().into()),
            "fields" => self.fields().cloned(),
            "previous" => self.previous(),
            field => {
                let member = self.fields()?.get_attr(field).ok()?;
                (!member.is_undefined()).then_some(member)
            }
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
            self.trace.accesses().undefined = Some((self.name.clone(), key.to_owned()));
        }
        found
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().map_err(|_| fmt::Error)?)
    }
}
