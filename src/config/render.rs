//! Files that are made of secrets: `[[render]]`.

use std::{
    fs::File,
    io::Read as _,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Secrets,
    parse::{gid, mode, path, uid},
    reader::{Read, Section, Value, all},
};
use crate::{
    files::temporary_beside,
    model::{SecretName, SecretSource, Span},
    template::Template,
};

/// The longest template, in bytes.
const LONGEST_TEMPLATE: u64 = 1 << 20;

/// A file that is made of secrets, and what is done once it has changed.
#[derive(Debug, Clone)]
pub struct Render {
    /// Where it is.
    pub file: PathBuf,
    /// What is in it.
    pub content: Content,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner; whoever the process runs as if none.
    pub owner: Option<u32>,
    /// Its group; the process's if none, or the folder's if that hands its group on.
    pub group: Option<u32>,
    /// Who is told of a change.
    pub notice: Option<Notice>,
    /// How long the secrets have to be quiet before a change is written.
    pub debounce: Duration,
    /// How long a command may take.
    pub timeout: Duration,
    /// How often a notice that failed is tried again.
    pub retries: u32,
    /// Whether the sidecar is ready only once the file is there.
    pub required: bool,
}

/// What a rendered file holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// One secret, or a field of it.
    Secret {
        /// The secret.
        name: SecretName,
        /// The member of its value, which is a JSON object then.
        field: Option<String>,
    },
    /// What a template makes of secrets.
    Template(Arc<Template>),
}

/// How somebody is told that a file has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A program and its arguments; no shell.
    Command(Vec<String>),
    /// A signal.
    Signal {
        /// The signal.
        signal: Signal,
        /// The file that holds the process's id.
        pid_file: PathBuf,
    },
}

/// A signal that tells a process something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Its name, without SIG.
    pub name: &'static str,
    /// Its number.
    pub number: rustix::process::Signal,
}

const SIGNALS: [Signal; 8] = {
    use rustix::process::Signal as S;
    [
        Signal {
            name: "HUP",
            number: S::HUP,
        },
        Signal {
            name: "INT",
            number: S::INT,
        },
        Signal {
            name: "QUIT",
            number: S::QUIT,
        },
        Signal {
            name: "TERM",
            number: S::TERM,
        },
        Signal {
            name: "USR1",
            number: S::USR1,
        },
        Signal {
            name: "USR2",
            number: S::USR2,
        },
        Signal {
            name: "WINCH",
            number: S::WINCH,
        },
        Signal {
            name: "CONT",
            number: S::CONT,
        },
    ]
};

pub(super) fn renders(
    root: &Section<'_>,
    folder: &Path,
    secrets: Option<&Secrets>,
) -> Read<Vec<Render>> {
    let mut files = Vec::new();
    root.sections("render", |section| {
        render(section, folder, secrets, &mut files)
    })
}

fn render(
    section: &Section<'_>,
    folder: &Path,
    secrets: Option<&Secrets>,
    files: &mut Vec<(PathBuf, usize)>,
) -> Read<Render> {
    let file = section
        .required("file")
        .and_then(|value| target(&value, folder, secrets, files));
    let content = content(section, folder, secrets, file.as_deref().ok());
    let mode = section.or("mode", 0o600, mode);
    let owner = section.maybe("owner", uid);
    let group = section.maybe("group", gid);
    let notice = notice(section, folder);
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

fn target(
    value: &Value<'_>,
    folder: &Path,
    secrets: Option<&Secrets>,
    files: &mut Vec<(PathBuf, usize)>,
) -> Read<PathBuf> {
    let file = path(value, folder)?;
    let file: PathBuf = file
        .components()
        .filter(|component| *component != Component::CurDir)
        .collect();
    if file.file_name().is_none() || value.text()?.ends_with('/') {
        return Err(value.problem("is a folder: name a file"));
    }
    let real = real(&file);
    let is_other = |other: &Path| {
        *other == real || *other == temporary_beside(&real) || temporary_beside(other) == real
    };
    if let Some((_, line)) = files.iter().find(|(other, _)| is_other(other)) {
        return Err(value.problem(format_args!(
            "{} is written on line {line} already",
            file.display()
        )));
    }
    if let Some(secrets) = secrets {
        let named = secrets.named.iter().find(|secret| match &secret.source {
            SecretSource::File(source) => is_in(&file, &real, source),
            _ => false,
        });
        let mapped = || {
            secrets.mappings.iter().find(|all| {
                all.files()
                    .is_some_and(|source| is_in(&file, &real, &source))
            })
        };
        let name = named
            .map(|secret| secret.name.to_string())
            .or_else(|| mapped().map(|all| all.name().to_string()));
        if let Some(name) = name {
            return Err(value.problem(format_args!(
                "{} is where the secret {name} comes from",
                file.display()
            )));
        }
    }
    files.push((real, value.line()));
    Ok(file)
}

/// Whether a file is the source of a secret, or in the folder that is it: then it would change what it is made of. A `*` stands for a
/// part of one name.
fn is_in(file: &Path, real_file: &Path, source: &Path) -> bool {
    let ends = source.canonicalize().ok();
    let begins_with = |file: &Path, source: &Path| {
        let mut components = file.components();
        source.components().all(|wanted| {
            components
                .next()
                .is_some_and(|component| fits(wanted, component))
        })
    };
    let is_in = |source: &Path| begins_with(file, source) || begins_with(real_file, source);
    is_in(&plain(source)) || is_in(&real(source)) || ends.is_some_and(|end| is_in(&end))
}

fn fits(wanted: Component<'_>, component: Component<'_>) -> bool {
    let (wanted, component) = (
        wanted.as_os_str().as_encoded_bytes(),
        component.as_os_str().as_encoded_bytes(),
    );
    match memchr::memchr(b'*', wanted) {
        None => wanted == component,
        Some(star) => {
            let (before, after) = (&wanted[..star], &wanted[star + 1..]);
            component.len() >= before.len() + after.len()
                && component.starts_with(before)
                && component.ends_with(after)
        }
    }
}

/// A path without the detours that can be told from it alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            _ => plain.push(component),
        }
    }
    plain
}

/// A path in the folder that its own leads to, if that is there.
fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => plain(path),
    }
}

fn content(
    section: &Section<'_>,
    folder: &Path,
    secrets: Option<&Secrets>,
    target: Option<&Path>,
) -> Read<Content> {
    let (secret, field) = (section.optional("secret"), section.optional("field"));
    let (file, text) = (
        section.optional("template"),
        section.optional("template_text"),
    );
    match (secret, file, text, field) {
        (Some(secret), None, None, field) => {
            let name = known(&secret, secrets);
            let field = field
                .map(|field| field.some_text().map(str::to_owned))
                .transpose();
            Ok(Content::Secret {
                name: name?,
                field: field?,
            })
        }
        (None, Some(file), None, None) => template_file(&file, folder, secrets, target),
        (None, None, Some(text), None) => template(&text, "template_text", text.text()?, secrets),
        (None, None, None, None) => Err(section.absence(
            "secret",
            "is required, or template, or template_text: what the file holds",
        )),
        (None, _, _, Some(field)) => {
            Err(field.absence("needs secret: it is a member of one secret's value"))
        }
        _ => {
            Err(section
                .problem("has more than one of secret, template and template_text: name one"))
        }
    }
}

fn known(value: &Value<'_>, secrets: Option<&Secrets>) -> Read<SecretName> {
    let name: SecretName = value.parsed()?;
    match secrets.is_none_or(|secrets| secrets.find(name.as_str()).is_some()) {
        true => Ok(name),
        false => Err(value.absence(format_args!("there is no secret {name}"))),
    }
}

fn template_file(
    value: &Value<'_>,
    folder: &Path,
    secrets: Option<&Secrets>,
    target: Option<&Path>,
) -> Read<Content> {
    let path = path(value, folder)?;
    if target.is_some_and(|target| real(target) == real(&path)) {
        return Err(value.problem("is the file that is written"));
    }
    match read_template(&path) {
        Ok(text) => template(value, &path.display().to_string(), &text, secrets),
        Err(why) => Err(value.problem(format_args!("can't read {}: {why}", path.display()))),
    }
}

fn read_template(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is not a file".into());
    }
    let mut text = String::new();
    file.take(LONGEST_TEMPLATE + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > LONGEST_TEMPLATE {
        Err(format!("it is longer than {LONGEST_TEMPLATE} bytes"))
    } else {
        Ok(text)
    }
}

/// A template without faults, whose secrets there are.
fn template(
    value: &Value<'_>,
    name: &str,
    source: &str,
    secrets: Option<&Secrets>,
) -> Read<Content> {
    let problem = |line: Option<usize>, message: &str| {
        let place = line.map_or_else(|| name.to_owned(), |line| format!("{name}:{line}"));
        value.problem(format_args!("{place}: {message}"))
    };
    let template = Template::parse(name, source.to_owned()).map_err(|faults| {
        let noted: Vec<_> = faults
            .iter()
            .map(|fault| problem(fault.line, &fault.message))
            .collect();
        noted
            .first()
            .copied()
            .unwrap_or_else(|| problem(None, "is not a template"))
    })?;
    let is_there = |secret: &str| secrets.is_none_or(|secrets| secrets.find(secret).is_some());
    let unknown = template
        .mentions()
        .iter()
        .filter(|mention| !is_there(&mention.secret));
    let missing = unknown.map(|mention| {
        let (line, secret) = (mention.line, &mention.secret);
        Err::<(), _>(value.absence(format_args!("{name}:{line}: there is no secret {secret:?}")))
    });
    all(missing)?;
    Ok(Content::Template(Arc::new(template)))
}

fn notice(section: &Section<'_>, folder: &Path) -> Read<Option<Notice>> {
    match (
        section.optional("command"),
        section.optional("signal"),
        section.optional("pid_file"),
    ) {
        (None, None, None) => Ok(None),
        (Some(command), None, None) => Ok(Some(Notice::Command(argv(&command, folder)?))),
        (None, Some(signal), Some(pid_file)) => {
            let (signal, pid_file) = (known_signal(&signal), path(&pid_file, folder));
            Ok(Some(Notice::Signal {
                signal: signal?,
                pid_file: pid_file?,
            }))
        }
        (None, Some(signal), None) => {
            let _ = known_signal(&signal);
            Err(section.absence(
                "pid_file",
                "is required with signal: the file that holds the process's id",
            ))
        }
        (None, None, Some(pid_file)) => Err(pid_file.absence("needs signal")),
        (Some(command), ..) => Err(command.problem("stands beside a signal: one or the other")),
    }
}

/// A program is looked for in the folders of `PATH`, or from the config's folder if there is a slash in it.
fn argv(value: &Value<'_>, folder: &Path) -> Read<Vec<String>> {
    if !value.is_array() {
        return Err(value.unexpected("an array of a program and its arguments, such as [\"systemctl\", \"reload\", \"orders\"]"));
    }
    let mut argv = value.list(|item| item.text().map(str::to_owned))?;
    match argv.first_mut() {
        Some(program) if !program.is_empty() => {
            if program.contains('/')
                && let Some(path) = folder.join(&*program).to_str()
            {
                *program = path.to_owned();
            }
            Ok(argv)
        }
        _ => Err(value.problem("names no program")),
    }
}

fn known_signal(value: &Value<'_>) -> Read<Signal> {
    let text = value.text()?;
    let name = text.strip_prefix("SIG").unwrap_or(text);
    SIGNALS
        .into_iter()
        .find(|signal| signal.name == name)
        .ok_or_else(|| {
            let known = SIGNALS.map(|signal| signal.name).join(", ");
            value.problem(format_args!(
                "there is no signal {text:?} for this; known: {known}"
            ))
        })
}
