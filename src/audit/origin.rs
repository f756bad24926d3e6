use rustix::{process, system};
use serde::Serialize;

/// Who writes: the process, its user, and the login that it descends from.
#[derive(Debug, Clone, Serialize)]
pub struct Origin {
    host: String,
    pid: i32,
    uid: u32,
    user: Option<String>,
    /// The user who logged in, whoever he became since; none for a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    login_uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<String>,
}

impl Origin {
    /// This process.
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

/// The audit login id (credentials(7)): set at login, kept through su and sudo, and not for the process to change. The environment
/// (SUDO_USER, LOGNAME) says whatever its owner likes.
fn login_uid() -> Option<u32> {
    const UNSET: u32 = u32::MAX;

    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    text.trim().parse().ok().filter(|uid| *uid != UNSET)
}
