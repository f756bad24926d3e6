//! PKCS#11 URIs (RFC 7512): the attributes that select a key in a token, and the source of its
//! PIN.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

/// Selects a key in a token. `None` matches anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyUri {
    pub(super) token: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) manufacturer: Option<String>,
    pub(super) model: Option<String>,
    pub(super) object: Option<String>,
    pub(super) id: Option<Vec<u8>>,
    pub(super) kind: Option<Kind>,
    pub(super) pin_source: Option<PathBuf>,
    pub(super) module: Option<PathBuf>,
}

/// The type of a KEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// AES.
    Secret,
    /// RSA.
    Private,
}

impl KeyUri {
    /// Parses what follows `pkcs11:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        for (name, value) in attributes(path, ';')? {
            match name {
                "token" => once(&mut uri.token, name, text(name, value)?)?,
                "serial" => once(&mut uri.serial, name, text(name, value)?)?,
                "manufacturer" => once(&mut uri.manufacturer, name, text(name, value)?)?,
                "model" => once(&mut uri.model, name, text(name, value)?)?,
                "object" => once(&mut uri.object, name, text(name, value)?)?,
                "id" => once(&mut uri.id, name, value)?,
                "type" => once(&mut uri.kind, name, kind(&text(name, value)?)?)?,
                other => return Err(format!("unsupported attribute `{other}`")),
            }
        }
        for (name, value) in attributes(query, '&')? {
            match name {
                "pin-source" => once(&mut uri.pin_source, name, file(&text(name, value)?)?)?,
                "module-path" => once(&mut uri.module, name, text(name, value)?.into())?,
                "pin-value" => {
                    return Err("`pin-value` would expose the PIN in the manifest; use \
                         pin-source=file:PATH"
                        .into());
                }
                other => return Err(format!("unsupported attribute `{other}`")),
            }
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err("the token is missing: add token=NAME".into());
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err("the key is missing: add object=NAME or id=%01".into());
        }
        Ok(uri)
    }
}

fn attributes(text: &str, separator: char) -> Result<Vec<(&str, Vec<u8>)>, String> {
    let parts = text.split(separator).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((name, value)) => Ok((name, percent_decode_str(value).collect())),
            None => Err(format!("`{part}` is not NAME=VALUE")),
        })
        .collect()
}

fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("duplicate attribute `{name}`")),
    }
}

fn text(name: &str, value: Vec<u8>) -> Result<String, String> {
    String::from_utf8(value).map_err(|_| format!("`{name}` is not UTF-8"))
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "secret-key" => Ok(Kind::Secret),
        "private" => Ok(Kind::Private),
        other => Err(format!(
            "unsupported type {other}; a KEK has type secret-key (AES) or private (RSA)"
        )),
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text.strip_prefix("file:").unwrap_or(text));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("pin-source must be an absolute path, such as file:/run/pin".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_selects_a_key_and_the_source_of_its_pin() {
        let uri = KeyUri::parse(
            "token=my%20token;object=kek;id=%01%ff;type=private\
             ?pin-source=file:/run/pin&module-path=/lib/hsm.so",
        );
        let expected = KeyUri {
            token: Some("my token".into()),
            object: Some("kek".into()),
            id: Some(vec![1, 255]),
            kind: Some(Kind::Private),
            pin_source: Some("/run/pin".into()),
            module: Some("/lib/hsm.so".into()),
            ..KeyUri::default()
        };
        assert_eq!(uri, Ok(expected));
    }

    #[test]
    fn errors_name_the_attribute_and_never_the_pin() {
        for (uri, why) in [
            ("object=kek", "add token=NAME"),
            ("token=t", "add object=NAME"),
            ("token=t;object=k;token=u", "duplicate"),
            ("token=t;object=k;type=cert", "secret-key"),
            ("token=t;object=k;colour=red", "colour"),
            ("token=t;object", "NAME=VALUE"),
            ("token=%ff;object=k", "UTF-8"),
            ("token=t;object=k?pin-value=1234", "pin-source"),
            ("token=t;object=k?pin-source=pin", "absolute"),
        ] {
            let error = KeyUri::parse(uri).expect_err(uri);
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("1234"));
        }
    }
}
