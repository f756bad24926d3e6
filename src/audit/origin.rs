//! The process that writes a record.

use rustix::{process, system};
use serde::Serialize;

/// A process, its user, and the login session that it belongs to.
#[derive(Debug, Clone, Serialize)]
pub struct Origin {
    host: String,
    pid: i32,
    uid: u32,
    user: Option<String>,
    /// The user who logged in, even after su or sudo. A service has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    login_uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<String>,
}

impl Origin {
    /// Describes this process.
    pub fn here() -> Self {
        let uid = process::getuid().as_raw();
        let login_uid = login_uid();
        Self {
            host: system::uname().nodename().to_string_lossy().into_owned(),
            pid: process::getpid().as_raw_nonzero().get(),
            uid,
            user: name(uid),
            login_uid,
            login: login_uid.and_then(name),
        }
    }
}

fn name(uid: u32) -> Option<String> {
    uzers::get_user_by_uid(uid).map(|user| user.name().to_string_lossy().into_owned())
}

/// Returns the audit login id (credentials(7)). It is set at login and kept through su and sudo,
/// and an unprivileged process can't change it, unlike environment variables such as SUDO_USER.
fn login_uid() -> Option<u32> {
    const UNSET: u32 = u32::MAX;

    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    text.trim().parse().ok().filter(|uid| *uid != UNSET)
}
