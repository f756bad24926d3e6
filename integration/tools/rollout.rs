//! `sidekey rollout` on real sidecars under load: `sidekey dev --fleet` runs both.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sidekey::{crypto::SigningKey, model::SignerKey};

use crate::support::harness::{World, binary, wait};

/// `sidekey dev --fleet`, killed when dropped.
struct DevFleet {
    world: World,
    child: Child,
    /// Kept open: the fleet prints to it.
    _output: BufReader<ChildStdout>,
}

/// How long a whole rollout may take; its steps have shorter limits of their own.
const WHOLE_ROLLOUT: Duration = Duration::from_secs(600);

/// A strategy that soaks for a second, so that a test is short.
const FAST: &str = r#"
name = "fast"
poll = "100ms"
[each_wave]
within = "1m"
soak = { for = "1s", analysis = { minimum_samples = 0 } }
"#;

impl DevFleet {
    fn start(size: usize, extra: &[&str]) -> Self {
        let world = World::new();
        let mut child = Command::new(binary())
            .args(["dev", "--fleet", &size.to_string(), "--dir"])
            .arg(world.path("dev"))
            .args(extra)
            .envs(world.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(world.path("log")).unwrap())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("Press Ctrl-C") {
            line.clear();
            let length = output.read_line(&mut line).unwrap();
            let log = || fs::read_to_string(world.path("log")).unwrap();
            assert!(length > 0, "the fleet exited: {}", log());
        }
        fs::write(world.path("fast.toml"), FAST).unwrap();
        Self {
            world,
            child,
            _output: output,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("SIDEKEY_FLEET", self.world.path("dev/fleet.toml"))
            .envs(self.world.env.iter().cloned());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        // A rollout that pauses waits for a person.
        let mut child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > WHOLE_ROLLOUT {
                child.kill().unwrap();
                panic!("{arguments:?} doesn't end: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }

    fn rollout(&self, verb: &str, extra: &[&str]) -> Output {
        self.run(&[&["rollout", verb, "demo"], extra].concat())
    }

    /// Starts a rollout that goes on in the background, and waits until its state is stored.
    fn begin(&self, extra: &[&str]) -> Child {
        let runner = self
            .command(&[&["rollout", "run", "demo"], extra].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait("a journal", || {
            self.world.path("dev/keyrings/demo.json.rollout").exists()
        });
        runner
    }

    fn path(&self, name: &str) -> String {
        self.world.path(name).display().to_string()
    }

    fn manifest(&self) -> Value {
        let file = self.world.path("dev/keyrings/demo.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    fn state(&self) -> Value {
        let output = self.run(&["--output", "json", "rollout", "status", "demo"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The inventory; all sidecars answer.
    fn sidecars(&self) -> Vec<Value> {
        let output = self.run(&["--output", "json", "fleet", "status"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["sidecars"].as_array().unwrap().clone()
    }

    fn wait_for(&self, what: &str, is_there: impl Fn(&Value) -> bool) {
        wait(what, || is_there(&self.state()));
    }
}

impl Drop for DevFleet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn encrypting(sidecars: &[Value]) -> Vec<u64> {
    sidecars
        .iter()
        .map(|sidecar| sidecar["keyrings"][0]["encrypting"].as_u64().unwrap())
        .collect()
}

#[test]
fn twenty_sidecars_rotate_under_load_without_one_failed_decrypt() {
    let fleet = DevFleet::start(20, &[]);
    let strategy = fleet.path("fast.toml");
    let before = fs::read(fleet.world.path("dev/keyrings/demo.json")).unwrap();
    let dry = fleet.rollout("run", &["--strategy", &strategy, "--dry-run"]);
    assert!(dry.status.success(), "{}", text(&dry));
    assert!(
        text(&dry).contains("activate wave canary"),
        "{}",
        text(&dry)
    );
    let after = fs::read(fleet.world.path("dev/keyrings/demo.json")).unwrap();
    assert_eq!(after, before, "a dry run changes nothing");

    let run = fleet.rollout("run", &["--strategy", &strategy]);
    assert!(run.status.success(), "{}", text(&run));
    assert!(text(&run).contains("20 sidecars proved"), "{}", text(&run));
    let sidecars = fleet.sidecars();
    assert_eq!(encrypting(&sidecars), [2; 20]);
    wait("messages under the new version everywhere", || {
        let output = fleet.run(&["--output", "json", "fleet", "keys"]);
        let keys: Value = serde_json::from_slice(&output.stdout).unwrap();
        keys["keys"][1]["uses"]["decrypted"].as_u64() > Some(400)
    });
    let log = fs::read_to_string(fleet.world.path("log")).unwrap();
    for code in ["decryption_failed", "key_version", "no_primary", "lease"] {
        assert!(!log.contains(code), "an application was refused: {log}");
    }
    assert!(fleet.manifest().get("rollout").is_none(), "it has ended");

    let report = fleet.rollout("report", &[]);
    assert!(
        text(&report).contains("The rollout is finished."),
        "{}",
        text(&report)
    );
    let html = fleet.path("report.html");
    let written = fleet.rollout("report", &["--format", "html", "--to", &html]);
    assert!(written.status.success(), "{}", text(&written));
    assert!(
        fs::read_to_string(html)
            .unwrap()
            .contains("soak wave critical")
    );

    // And back, by the verb.
    let back = fleet.rollout("rollback", &[]);
    assert!(back.status.success(), "{}", text(&back));
    assert_eq!(encrypting(&fleet.sidecars()), [1; 20]);
}

#[test]
fn a_fault_in_a_wave_is_found_and_rolled_back() {
    let fleet = DevFleet::start(5, &["--inject-fault", "standard"]);
    // The faulty wave soaks until the fault shows.
    let strategy = "name = \"patient\"\npoll = \"100ms\"\n\
                    [[wave]]\nname = \"canary\"\n\
                    [[wave]]\nname = \"standard\"\nsoak = { for = \"1h\" }\n\
                    [[wave]]\nname = \"critical\"\nsoak = { for = \"1h\" }\n";
    fs::write(fleet.world.path("patient.toml"), strategy).unwrap();
    let run = fleet.rollout("run", &["--strategy", &fleet.path("patient.toml")]);
    assert_eq!(run.status.code(), Some(3), "{}", text(&run));
    let said = text(&run);
    assert!(said.contains("verdict: fail: failed decrypts"), "{said}");
    assert!(said.contains("was rolled back"), "{said}");
    assert!(
        !said.contains("soak wave critical"),
        "it came to no further wave: {said}"
    );
    assert_eq!(encrypting(&fleet.sidecars()), [1; 5]);
}

#[test]
fn a_killed_runner_is_followed_by_another_and_two_at_once_are_refused() {
    let fleet = DevFleet::start(5, &[]);
    let slow = FAST.replace("1s", "1h");
    fs::write(fleet.world.path("slow.toml"), slow).unwrap();
    let strategy = fleet.path("slow.toml");
    let mut runner = fleet.begin(&["--strategy", &strategy]);
    let soaks = |state: &Value| state["step_text"].as_str().unwrap().starts_with("soak");
    fleet.wait_for("the first soak", soaks);

    let second = fleet.rollout("run", &["--strategy", &strategy]);
    assert_eq!(second.status.code(), Some(3), "{}", text(&second));
    // By hand, a change needs words, too.
    let manifest = fleet.path("dev/keyrings/demo.json");
    let by_hand = fleet.run(&["keyring", "activate", &manifest, "--version", "1"]);
    assert_eq!(by_hand.status.code(), Some(3), "{}", text(&by_hand));
    assert!(
        text(&by_hand).contains("--despite-rollout"),
        "{}",
        text(&by_hand)
    );

    // A request is taken by the process that runs the rollout.
    let promoted = fleet.rollout("promote", &[]);
    assert!(promoted.status.success(), "{}", text(&promoted));
    fleet.wait_for("the next soak", |state| {
        state["step_text"]
            .as_str()
            .unwrap()
            .starts_with("soak wave standard")
    });
    let taken = fleet.rollout("pause", &[]);
    assert!(taken.status.success(), "{}", text(&taken));
    fleet.wait_for("a pause", |state| state["phase"]["is"] == "paused");

    runner.kill().unwrap();
    runner.wait().unwrap();
    let resumed = fleet.rollout("promote", &["--full"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert_eq!(encrypting(&fleet.sidecars()), [2; 5]);
    assert_eq!(fleet.manifest()["versions"].as_array().unwrap().len(), 2);
}

#[test]
fn a_compromise_is_replaced_everywhere_at_once() {
    let fleet = DevFleet::start(3, &[]);
    let strategy = fleet.path("fast.toml");
    let run = fleet.rollout("run", &["--compromised", "1", "--strategy", &strategy]);
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(encrypting(&fleet.sidecars()), [2; 3]);
    assert_eq!(fleet.manifest()["versions"][0]["compromised"], true);
    let back = fleet.rollout("rollback", &[]);
    assert_eq!(back.status.code(), Some(3), "{}", text(&back));
    assert!(text(&back).contains("roll forward"), "{}", text(&back));
}

/// Writes an Ed25519 key (PKCS#8 PEM, RFC 8410), and returns its file and its public half.
fn key(fleet: &DevFleet, name: &str, seed: u8) -> (String, String) {
    let mut der = vec![
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    der.extend([seed; 32]);
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der)
    );
    let public = SigningKey::from_pem(pem.as_bytes()).unwrap().public_key();
    fs::write(fleet.world.path(name), pem).unwrap();
    (fleet.path(name), SignerKey(public).to_string())
}

#[test]
fn a_pause_for_approvals_needs_as_many_people_as_the_strategy_says() {
    let fleet = DevFleet::start(3, &[]);
    let (ann, ann_public) = key(&fleet, "ann.pem", 1);
    let (ben, ben_public) = key(&fleet, "ben.pem", 2);
    let (eve, _) = key(&fleet, "eve.pem", 3);
    let (requester, _) = key(&fleet, "requester.pem", 4);
    let strategy = format!(
        "name = \"approved\"\npoll = \"100ms\"\n\
         [approvals]\nrequired = 2\napprovers = [\"{ann_public}\", \"{ben_public}\"]\n\
         [[wave]]\nname = \"canary\"\n\
         soak = {{ for = \"1s\", analysis = {{ minimum_samples = 0 }} }}\n\
         pause = {{ until = \"approval\" }}\n\
         [[wave]]\nname = \"standard\"\n[[wave]]\nname = \"critical\"\n"
    );
    fs::write(fleet.world.path("approved.toml"), strategy).unwrap();
    let strategy = fleet.path("approved.toml");
    let arguments = ["--strategy", &strategy, "--requester-key", &requester];
    let anonymous = fleet.rollout("run", &arguments[..2]);
    assert_eq!(anonymous.status.code(), Some(2), "{}", text(&anonymous));
    let mut runner = fleet.begin(&arguments);
    fleet.wait_for("an order", |state| state["order"].is_object());
    let order = fleet.state()["order"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let approve =
        |key: &str, order: &str| fleet.rollout("approve", &["--key", key, "--order", order]);
    let stranger = approve(&eve, &order);
    assert_eq!(stranger.status.code(), Some(3), "{}", text(&stranger));
    let other = approve(&ann, &"0".repeat(64));
    assert_eq!(other.status.code(), Some(3), "{}", text(&other));
    let promoted = fleet.rollout("promote", &[]);
    assert_eq!(promoted.status.code(), Some(3), "{}", text(&promoted));
    assert!(approve(&ann, &order).status.success());
    assert!(
        approve(&ann, &order).status.success(),
        "again, which counts once"
    );
    fleet.wait_for("an approval", |state| state["order"]["approvals"] == 1);
    assert!(approve(&ben, &order).status.success());
    let mut status = None;
    wait("the rollout's end", || {
        status = runner.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    assert_eq!(encrypting(&fleet.sidecars()), [2; 3]);
    let report = fleet.rollout("report", &[]);
    assert!(text(&report).contains("2 of 2"), "{}", text(&report));
}
