//! `[[render]]`: the files to render from secrets.

mod content;
mod notice;
mod target;

use std::{path::PathBuf, time::Duration};

use super::{
    Secrets,
    reader::{Parsed, Section, Value},
};
use crate::model::Span;

pub use content::Content;
pub(crate) use content::load_template;
pub use notice::{Notice, Signal};

/// A file to render from secrets, and what follows a change of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Render {
    /// The file's path.
    pub file: PathBuf,
    /// The file's content.
    pub content: Content,
    /// The file's permission bits.
    pub mode: u32,
    /// The file's owner. Default: the process's user.
    pub owner: Option<u32>,
    /// The file's group. Default: the process's group, or the folder's if it is set-group-ID.
    pub group: Option<u32>,
    /// How the file's reader is notified of a change.
    pub notice: Option<Notice>,
    /// How long the secrets must stay unchanged before a change is written.
    pub debounce: Duration,
    /// Time limit for a command.
    pub timeout: Duration,
    /// How many times a failed notification is retried.
    pub retries: u32,
    /// Whether readiness waits for the file.
    pub required: bool,
}

/// The files of the renders read so far, each with its line.
type Targets = Vec<(PathBuf, usize)>;

/// Reads every `[[render]]`. `secrets` is `None` if they are invalid; then no name is checked.
pub(super) fn renders(root: &Section<'_>, secrets: Option<&Secrets>) -> Parsed<Vec<Render>> {
    let mut targets = Targets::new();
    root.sections("render", |section| render(section, secrets, &mut targets))
}

fn render(
    section: &Section<'_>,
    secrets: Option<&Secrets>,
    targets: &mut Targets,
) -> Parsed<Render> {
    let file = section
        .required("file")
        .and_then(|value| target::target(&value, secrets, targets));
    let content = content::content(section, secrets, file.as_deref().ok());
    let mode = section.or("mode", 0o600, Value::mode);
    let owner = section.maybe("owner", Value::uid);
    let group = section.maybe("group", Value::gid);
    let notice = notice::notice(section);
    let debounce = section.or("debounce", Duration::from_secs(1), |value| {
        value.duration(Duration::ZERO..=Duration::from_secs(3600))
    });
    let timeout = section.or("timeout", Duration::from_secs(30), |value| {
        value.duration(Duration::from_millis(1)..=Span::from_days(1).0)
    });
    let retries = section.or("retries", 3, |value| value.integer(0..=100));
    let required = section.or("required", true, Value::boolean);
    Ok(Render {
        file: file?,
        content: content?,
        mode: mode?,
        owner: owner?,
        group: group?,
        notice: notice?,
        debounce: debounce?,
        timeout: timeout?,
        retries: retries?,
        required: required?,
    })
}
