//! Opens the database.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{
    AnyPool, ConnectOptions, Connection,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
};

use super::StoreError;
use crate::{
    config::HubDatabase,
    files::{Allowed, folder_of, read_private, run_blocking},
};

/// How long a statement waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// One writes; the others read.
const CONNECTIONS: u32 = 4;
/// The longest password, in bytes.
const MAX_PASSWORD: usize = 4096;

/// What a path keeps in a URL.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_');

/// Each connection to SQLite. In WAL mode, `FULL` syncs every commit: what was acknowledged to a
/// sidecar survives a crash of the machine.
const SQLITE: [&str; 3] = [
    "PRAGMA busy_timeout = 10000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
];

/// Each connection to PostgreSQL: a replica that hangs, or is cut off, holds up the others for no
/// longer than this.
const POSTGRES: [&str; 3] = [
    "SET lock_timeout = '10s'",
    "SET statement_timeout = '20s'",
    "SET idle_in_transaction_session_timeout = '10s'",
];

const SQLITE_ADVICE: &str = "`state_dir` must be a folder that this user may write to, on a local \
    disk with free space, and hub.db a database of a hub";
const POSTGRES_ADVICE: &str = "check `database.url`, `database.password_file` and that the server \
    runs; the user must be allowed to create tables";

/// What kind of database it is. The statements are the same, but for locks and the order of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// Names the database in errors, without the user and what may be a password.
pub(super) struct Location<'a>(pub(super) &'a HubDatabase);

impl fmt::Display for Location<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            HubDatabase::Sqlite(path) => write!(f, "{}", path.display()),
            HubDatabase::Postgres { url, .. } => {
                let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
                write!(f, "postgres://{}", host.split('?').next().unwrap_or(host))
            }
        }
    }
}

/// Says what to do about an error that keeps the hub from starting.
pub(super) fn at_start(error: StoreError, database: &HubDatabase) -> StoreError {
    match error {
        StoreError::Failed { .. } | StoreError::Silent { .. } => StoreError::Unusable {
            location: Location(database).to_string(),
            reason: error.to_string(),
            advice: advice(database),
        },
        _ => error,
    }
}

fn advice(database: &HubDatabase) -> &'static str {
    match database {
        HubDatabase::Sqlite(_) => SQLITE_ADVICE,
        HubDatabase::Postgres { .. } => POSTGRES_ADVICE,
    }
}

pub(super) async fn connect(database: &HubDatabase) -> Result<(AnyPool, Kind), StoreError> {
    install_default_drivers();
    let (kind, statements) = match database {
        HubDatabase::Sqlite(_) => (Kind::Sqlite, SQLITE),
        HubDatabase::Postgres { .. } => (Kind::Postgres, POSTGRES),
    };
    let unusable = |reason: String| StoreError::Unusable {
        location: Location(database).to_string(),
        reason,
        advice: advice(database),
    };
    let owned = database.clone();
    let options = run_blocking(move || options(&owned))
        .await
        .map_err(unusable)?;
    // A pool would try again for a while, and not say why it failed.
    check(&options, &statements)
        .await
        .map_err(|error| unusable(error.to_string()))?;
    let pool = AnyPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                for statement in statements {
                    sqlx::raw_sql(statement).execute(&mut *connection).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(options);
    Ok((pool, kind))
}

async fn check(
    options: &AnyConnectOptions,
    statements: &[&'static str],
) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    for statement in statements {
        sqlx::raw_sql(*statement).execute(&mut connection).await?;
    }
    connection.close().await
}

fn options(database: &HubDatabase) -> Result<AnyConnectOptions, String> {
    let parse = |url: &str| -> Result<AnyConnectOptions, String> {
        let options: AnyConnectOptions = url.parse().map_err(|error| format!("{error}"))?;
        Ok(options.disable_statement_logging())
    };
    match database {
        HubDatabase::Sqlite(path) => {
            create_privately(path).map_err(|error| error.to_string())?;
            let path = path.to_str().ok_or("its path is not UTF-8")?;
            parse(&format!(
                "sqlite:{}?mode=rwc",
                utf8_percent_encode(path, PATH)
            ))
        }
        HubDatabase::Postgres { url, password_file } => {
            let mut options = parse(url)?;
            if let Some(file) = password_file {
                let what = "the database's password (`database.password_file`)";
                let bytes = read_private(file, what, Allowed::OwnerAndGroup, MAX_PASSWORD)
                    .map_err(|error| error.to_string())?;
                let text = std::str::from_utf8(&bytes).map_err(|_| format!("{what}: no UTF-8"))?;
                let password = text.trim_end_matches(['\r', '\n']);
                let url = &mut options.database_url;
                url.set_password(Some(password))
                    .map_err(|()| "the URL has no host")?;
            }
            Ok(options)
        }
    }
}

/// Creates the file, which SQLite would create with the umask, and its folder.
fn create_privately(path: &Path) -> io::Result<()> {
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700).create(folder_of(path))?;
    let mut file = fs::OpenOptions::new();
    match file.write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_no_user_and_no_password() {
        let location = |url: &str| {
            let url = url.to_owned();
            let password_file = None;
            Location(&HubDatabase::Postgres { url, password_file }).to_string()
        };
        assert_eq!(
            location("postgres://hub:secret@db.example:5432/hub?sslmode=require"),
            "postgres://db.example:5432/hub"
        );
        assert_eq!(location("postgresql://db/hub"), "postgres://db/hub");
    }
}
