//! `[listen]` and `[ops]`: the listeners.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    Tls,
    reader::{Parsed, Section, Value},
    tls::tls,
};

/// The applications' listeners.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// The Unix socket's path, at most 107 bytes (`sun_path` of unix(7)).
    pub socket: PathBuf,
    /// The socket's permission bits.
    pub mode: u32,
    /// The socket's owner, by name or id. Default: the process's user.
    pub owner: Option<String>,
    /// The socket's group, by name or id. Default: the process's group.
    pub group: Option<String>,
    /// Whether to refuse a folder of the socket that every user can write to.
    pub refuse_writable_folder: bool,
    /// A loopback TCP listener, for applications that can't open a socket.
    pub tcp: Option<Tcp>,
}

/// A loopback TCP listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Tcp {
    /// The address, which is always loopback.
    pub address: SocketAddr,
    /// The file that holds the bearer token (RFC 6750).
    pub token_file: PathBuf,
    /// TLS. Default: plaintext.
    pub tls: Option<Tls>,
}

/// The operators' listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Ops {
    /// The address.
    pub listen: SocketAddr,
    /// The names under which it is reached, besides addresses and localhost.
    pub hosts: Vec<String>,
    /// TLS. Default: plaintext.
    pub tls: Option<Tls>,
}

pub(super) fn listen(section: &Section<'_>) -> Parsed<Listen> {
    let socket = section.required("socket").and_then(|value| socket(&value));
    let mode = section.or("mode", 0o660, Value::mode);
    let owner = section.maybe("owner", Value::name_or_id);
    let group = section.maybe("group", Value::name_or_id);
    let refuse_writable_folder = section.or("refuse_writable_folder", false, Value::boolean);
    let tcp = tcp(section);
    Ok(Listen {
        socket: socket?,
        mode: mode?,
        owner: owner?,
        group: group?,
        refuse_writable_folder: refuse_writable_folder?,
        tcp: tcp?,
    })
}

fn socket(value: &Value<'_>) -> Parsed<PathBuf> {
    /// `sun_path` of unix(7) has 108 bytes, of which the last is NUL.
    const LONGEST: usize = 107;

    let path = value.path()?;
    match path.as_os_str().len() {
        0..=LONGEST => Ok(path),
        length => Err(value.problem(format_args!(
            "{} is {length} bytes long; a socket path has at most {LONGEST} bytes",
            path.display()
        ))),
    }
}

fn tcp(section: &Section<'_>) -> Parsed<Option<Tcp>> {
    let tls = tls(section);
    match (section.optional("tcp"), section.optional("token_file")) {
        (None, None) => match tls? {
            None => Ok(None),
            Some(_) => Err(section.missing(
                "tcp",
                "is required with listen.tls, which applies to TCP only",
            )),
        },
        (None, Some(token_file)) => Err(token_file.missing("has no effect without listen.tcp")),
        (Some(address), token_file) => {
            let address = loopback(&address);
            let token_file = token_file
                .ok_or_else(|| section.missing("token_file", "is required with listen.tcp"))
                .and_then(|value| value.path());
            Ok(Some(Tcp {
                address: address?,
                token_file: token_file?,
                tls: tls?,
            }))
        }
    }
}

fn loopback(value: &Value<'_>) -> Parsed<SocketAddr> {
    match address(value)? {
        address if address.ip().is_loopback() => Ok(address),
        address => Err(value.problem(format_args!(
            "{} is not a loopback address; use 127.0.0.1 or [::1]",
            address.ip()
        ))),
    }
}

pub(super) fn address(value: &Value<'_>) -> Parsed<SocketAddr> {
    let text = value.text()?;
    text.parse().map_err(|_| {
        value.problem(format_args!(
            "expected an IP address and port such as \"127.0.0.1:8200\", found {text:?}"
        ))
    })
}

pub(super) fn host(value: &Value<'_>) -> Parsed<String> {
    let name = value.nonempty_text()?;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.bytes().all(is_part) {
        return Ok(name.to_owned());
    }
    Err(value.problem(format_args!(
        "expected a host name without scheme or port, such as \"sidekey.prod.svc\", found {name:?}"
    )))
}

pub(super) fn ops(section: &Section<'_>) -> Parsed<Ops> {
    let listen = section.or("listen", SocketAddr::from(([127, 0, 0, 1], 9464)), address);
    let value = section.optional("hosts");
    let hosts = value
        .as_ref()
        .map_or(Ok(Vec::new()), |value| value.list(|name| host(&name)));
    let tls = tls(section);
    let (hosts, tls) = (hosts?, tls?);
    match (value, &tls) {
        (Some(value), Some(_)) => {
            Err(value.problem("has no effect with ops.tls, where the certificate names the hosts"))
        }
        _ => Ok(Ops {
            listen: listen?,
            hosts,
            tls,
        }),
    }
}
