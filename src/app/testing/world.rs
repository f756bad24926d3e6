use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tracing::subscriber::DefaultGuard;

use super::{FakeKek, FakeSecret, FakeStore, TestApp, time::Time};
use crate::{
    admin::{Admin, Bases, Memory, Signing},
    app::{Config, build_on, rehearse},
    backend::{BackendError, Backends, Kek, ManifestStore, SecretProvider},
    clock::{Clock, ManualClock},
    config::{self, LoadError},
    crypto::{fingerprint, to_hex},
    keyring::Policy,
    model::{KekUri, Location, SecretSource},
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The KEK of every keyring that a world makes.
const KEK: &str = "fake:main";

/// What surrounds sidecars: outside systems, time, a folder for sockets, and the log.
pub(crate) struct World {
    folder: tempfile::TempDir,
    clock: Clock,
    time: Arc<Time>,
    backends: Arc<FakeBackends>,
    log: Log,
    started: Mutex<usize>,
    _logging: DefaultGuard,
}

impl World {
    /// An empty world. The test must have paused time: `#[tokio::test(start_paused = true)]`.
    pub(crate) fn new() -> Self {
        let start = Timestamp::from_second(1_800_000_000).expect("in range");
        let (clock, hands) = Clock::manual(start);
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            folder: tempfile::tempdir().expect("folder"),
            time: Arc::new(Time::new(hands)),
            backends: Arc::new(FakeBackends::new(clock.clone())),
            clock,
            log,
            started: Mutex::default(),
            _logging: tracing::subscriber::set_default(subscriber),
        }
    }

    /// A world with the keyring `demo`.
    pub(crate) async fn with_demo() -> Self {
        let world = Self::new();
        world.init("demo").await;
        world
    }

    /// Makes a keyring with one version, which is primary in every wave.
    pub(crate) async fn init(&self, name: &str) {
        self.init_with(name, Policy::default()).await;
    }

    /// Like [`World::init`], but with another policy.
    pub(crate) async fn init_with(&self, name: &str, policy: Policy) {
        let kek: KekUri = KEK.parse().expect("a KEK's URI");
        self.admin(name)
            .init(name.parse().expect("a name"), &[kek], policy)
            .await
            .expect("a new keyring");
    }

    /// Returns the operator's access to the keyring `name`, for rotations and other changes.
    pub(crate) fn admin(&self, name: &str) -> Admin {
        self.admin_with(name, Signing::NoKey)
    }

    /// Like [`World::admin`], for changes that are signed, or not, as `signing` says.
    pub(crate) fn admin_with(&self, name: &str, signing: Signing) -> Admin {
        self.admin_at(name, signing, self.clock.clone())
    }

    /// Like [`World::admin_with`], on a machine with another clock.
    pub(crate) fn admin_at(&self, name: &str, signing: Signing, clock: Clock) -> Admin {
        let backends = Arc::clone(&self.backends) as Arc<dyn Backends>;
        Admin::new(self.location(name), signing, &backends, clock)
            .expect("fakes have every location")
            .with_bases(Bases {
                memory: Some(Memory::in_folder(self.path("state"))),
                trust_clock: true,
                ..Bases::default()
            })
    }

    /// Returns the KEK that wraps the keyrings made here.
    pub(crate) fn main_kek(&self) -> Arc<FakeKek> {
        self.kek(KEK)
    }

    /// Returns the KEK under `uri`, such as `fake:other`.
    pub(crate) fn kek(&self, uri: &str) -> Arc<FakeKek> {
        self.backends.fake_kek(&uri.parse().expect("a KEK's URI"))
    }

    /// Returns the store that holds the manifest of the keyring `name`.
    pub(crate) fn store(&self, name: &str) -> Arc<FakeStore> {
        self.backends.fake_store(&self.location(name))
    }

    /// Returns the fake behind `source`, such as `file:db`.
    pub(crate) fn secret(&self, source: &str) -> Arc<FakeSecret> {
        let source = match source.parse().expect("a secret's source") {
            SecretSource::File(path) => SecretSource::File(self.path(path)),
            source => source,
        };
        self.backends.fake_secret(&source)
    }

    /// Returns a path in this world's folder.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    fn location(&self, name: &str) -> Location {
        Location::File(self.path(format!("{name}.json")))
    }

    /// Starts a sidecar that serves `demo`, and waits until it is ready.
    pub(crate) async fn start(&self) -> TestApp {
        self.start_with("", &["demo"]).await
    }

    /// Starts a sidecar that serves `keyrings`, with more config before them, and waits until it
    /// is ready.
    pub(crate) async fn start_with(&self, config: &str, keyrings: &[&str]) -> TestApp {
        let app = self.launch(config, keyrings).await;
        app.wait_ready().await;
        app
    }

    /// Like [`World::start_with`], but doesn't wait until the sidecar is ready.
    pub(crate) async fn launch(&self, config: &str, keyrings: &[&str]) -> TestApp {
        let config = self.config(config, keyrings);
        let backends = Arc::clone(&self.backends) as Arc<dyn Backends>;
        let runtime = tokio::runtime::Handle::current();
        let bound = build_on(&runtime, &config, backends, self.clock.clone())
            .await
            .expect("the sidecar starts");
        TestApp::new(bound, Arc::clone(&self.time))
    }

    /// Lets a sidecar read its config again, as SIGHUP does.
    pub(crate) fn reload(&self, app: &TestApp, config: &str, keyrings: &[&str]) {
        let text = self.config_text(config, app.socket(), keyrings);
        app.reload(self.parse(&text));
    }

    /// Returns the reason why a sidecar can't start, and all reasons that a rehearsal finds.
    pub(crate) async fn faults(&self, config: &str) -> (Option<String>, Vec<String>) {
        let config = self.config(config, &["demo"]);
        let backends = Arc::clone(&self.backends) as Arc<dyn Backends>;
        let found = rehearse(&config.settings, &backends, &self.clock).await;
        let runtime = tokio::runtime::Handle::current();
        let built = build_on(&runtime, &config, backends, self.clock.clone()).await;
        let fault = built.err().map(|error| error.to_string());
        (fault, found.iter().map(ToString::to_string).collect())
    }

    fn config(&self, config: &str, keyrings: &[&str]) -> Config {
        let number = {
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            *started += 1;
            *started
        };
        let socket = self.path(format!("{number}.sock"));
        self.parse(&self.config_text(config, &socket, keyrings))
            .unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn config_text(&self, config: &str, socket: &Path, keyrings: &[&str]) -> String {
        let listen = if config.contains("[listen]") {
            String::new()
        } else {
            format!("[listen]\nsocket = {socket:?}\n")
        };
        let keyrings: String = keyrings
            .iter()
            .map(|name| {
                format!(
                    "[[keyring]]\nname = {name:?}\nlocation = \"{name}.json\"\n\
                     keks = [\"fake:*\"]\n"
                )
            })
            .collect();
        // Config comes first, where no table has begun.
        format!("{config}\n{listen}\n[ops]\nlisten = \"127.0.0.1:0\"\n{keyrings}")
    }

    fn parse(&self, text: &str) -> Result<Config, LoadError> {
        let file = self.path("sidekey.toml");
        Ok(Config {
            settings: config::parse(&file, text)?,
            sha256: to_hex(&fingerprint(text.as_bytes())),
            file,
        })
    }

    /// Returns the current time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the clock. It moves without timers: for leases and schedules.
    pub(crate) fn clock(&self) -> &ManualClock {
        self.time.clock()
    }

    /// Moves timers and the clock.
    pub(crate) async fn advance(&self, by: Duration) {
        self.time.advance(by).await;
    }

    /// Waits until `is_there`, while time moves by up to a second.
    pub(crate) async fn wait(&self, what: &str, mut is_there: impl FnMut() -> bool) {
        self.time.wait(what, async || is_there()).await;
    }

    /// Waits for `work`, while time moves by milliseconds.
    pub(crate) async fn pass_time_until<T>(&self, work: impl Future<Output = T>) -> T {
        self.time.pass_until(work).await
    }

    /// Returns everything logged so far, in the text form.
    pub(crate) fn log(&self) -> String {
        let bytes = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Log lines, kept instead of written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every KEK, location and source there could be, each made on first use.
struct FakeBackends {
    clock: Clock,
    keks: Mutex<BTreeMap<KekUri, Arc<FakeKek>>>,
    stores: Mutex<BTreeMap<Location, Arc<FakeStore>>>,
    secrets: Mutex<BTreeMap<String, Arc<FakeSecret>>>,
}

impl FakeBackends {
    fn new(clock: Clock) -> Self {
        Self {
            clock,
            keks: Mutex::default(),
            stores: Mutex::default(),
            secrets: Mutex::default(),
        }
    }

    fn fake_kek(&self, uri: &KekUri) -> Arc<FakeKek> {
        find(&self.keks, uri, || FakeKek::new(uri))
    }

    fn fake_store(&self, location: &Location) -> Arc<FakeStore> {
        find(&self.stores, location, || FakeStore::new(location))
    }

    fn fake_secret(&self, source: &SecretSource) -> Arc<FakeSecret> {
        let clock = self.clock.clone();
        find(&self.secrets, &source.to_string(), || {
            FakeSecret::new(source, clock)
        })
    }
}

fn find<K: Ord + Clone, T>(
    known: &Mutex<BTreeMap<K, Arc<T>>>,
    key: &K,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = known.entry(key.clone());
    Arc::clone(entry.or_insert_with(|| Arc::new(make())))
}

impl Backends for FakeBackends {
    fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, BackendError> {
        Ok(self.fake_kek(uri))
    }

    fn store(&self, location: &Location) -> Result<Arc<dyn ManifestStore>, BackendError> {
        Ok(self.fake_store(location))
    }

    fn secret(&self, source: &SecretSource) -> Result<Arc<dyn SecretProvider>, BackendError> {
        Ok(self.fake_secret(source))
    }
}
