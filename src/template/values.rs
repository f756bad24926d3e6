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
            return Err(SafeError::error(
                "secret takes one name, such as secret(\"orders-db\")",
            ));
        };
        let name = name
            .as_str()
            .ok_or_else(|| SafeError::error("secret takes a name, which must be a string"))?;
        let mut accesses = self.0.accesses();
        accesses.used.insert(name.to_owned());
        let Some(input) = self.0.values.get(name) else {
            accesses.missing.push(Missing::Secret(name.to_owned()));
            return Err(SafeError::error(format!(
                "the secret {name} is not available yet"
            )));
        };
        drop(accesses);
        let (value, previous) = (input.current.clone(), Some(input.previous.clone()));
        Ok(Value::from_object(Secret {
            trace: Arc::clone(&self.0),
            name: name.to_owned(),
            value,
            previous,
        }))
    }
}

/// One value of a secret. It renders as its text.
struct Secret {
    trace: Arc<Trace>,
    name: String,
    value: VersionedValue,
    /// The value before this one; None if this is the previous value itself.
    previous: Option<Option<Option<VersionedValue>>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("secret").field(&self.name).finish()
    }
}

impl Secret {
    fn text(&self) -> Result<&str, Error> {
        let binary = |_| {
            SafeError::error(format!(
                "the secret {} is not text; use its .base64",
                self.name
            ))
        };
        std::str::from_utf8(&self.value.bytes).map_err(binary)
    }

    fn members(&self) -> Option<BTreeMap<String, &RawValue>> {
        let bytes: &[u8] = &self.value.bytes;
        // Without the byte order mark that editors of Windows put in front.
        serde_json::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).ok()
    }

    fn fields(&self) -> Option<Value> {
        Some(Value::from_pairs(
            self.members()?
                .into_iter()
                .map(|(name, raw)| (name, member(raw))),
        ))
    }

    fn previous(&self) -> Option<Value> {
        let value = match self.previous.as_ref()? {
            Some(Some(value)) => value.clone(),
            Some(None) => return Some(Value::from(())),
            None => {
                self.trace
                    .accesses()
                    .missing
                    .push(Missing::Previous(self.name.clone()));
                return Some(Value::from(()));
            }
        };
        let (trace, name) = (Arc::clone(&self.trace), self.name.clone());
        Some(Value::from_object(Self {
            trace,
            name,
            value,
            previous: None,
        }))
    }

    fn find(&self, key: &str) -> Option<Value> {
        match key {
            "value" => Some(self.text().map_or_else(Value::from, Value::from)),
            "base64" => Some(STANDARD.encode(&self.value.bytes).into()),
            "version" => Some(self.value.version.as_str().into()),
            "name" => Some(self.name.as_str().into()),
            "fields" => self.fields(),
            "previous" => self.previous(),
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
            self.trace.accesses().undefined = Some((self.name.clone(), key.to_owned()));
        }
        found
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().map_err(|_| fmt::Error)?)
    }
}

/// Converts a member of a JSON object. A number that MiniJinja would print differently becomes
/// text.
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
            Err(_) => Value::from(SafeError::error(
                "a member of the secret is nested too deeply",
            )),
        },
    }
}
