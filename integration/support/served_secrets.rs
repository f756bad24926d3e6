//! A sidecar that serves secrets, and an application that asks for them.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use tokio::time::sleep;

use super::harness::{Answer, Client, PATIENCE, Sidecar, World};

/// Reads when a test asks for it: by an interval only where the test says so.
pub const ON_DEMAND: &str = "[secrets]\nrefresh = \"1h\"\nforce_interval = \"1ms\"\nmiss_ttl = \"1ms\"\n\
                             [refresh]\nmax_backoff = \"100ms\"\nread_timeout = \"20s\"\n";

/// A secret's entry in the config, with more lines. The sidecar is ready when it has a value.
pub fn entry(name: &str, source: &str, more: &str) -> String {
    format!("[[secret]]\nname = {name:?}\nsource = {source:?}\nrequired = true\n{more}\n")
}

/// Starts a sidecar with these settings besides [`ON_DEMAND`].
pub fn launch(world: &World, config: &str) -> Sidecar {
    launch_as(world, "one", config)
}

/// The same, of a name.
pub fn launch_as(world: &World, name: &str, config: &str) -> Sidecar {
    world.launch(name, &format!("{ON_DEMAND}{config}"), &[])
}

/// An application's connection.
pub struct App(Client);

impl App {
    pub async fn of(sidecar: &Sidecar) -> Self {
        Self(sidecar.client().await)
    }

    /// What is held: `question` is a name, or a name and a query.
    pub async fn ask(&mut self, question: &str) -> Answer {
        self.0
            .send(Method::GET, &format!("/v1/secrets/{question}"), &[], "")
            .await
    }

    /// The same, as the provider says now.
    pub async fn demand(&mut self, question: &str) -> Answer {
        self.0
            .send(
                Method::GET,
                &format!("/v1/secrets/{question}"),
                &[("cache-control", "no-cache")],
                "",
            )
            .await
    }

    /// The bytes of what is held.
    pub async fn bytes(&mut self, question: &str) -> Answer {
        self.0
            .send(
                Method::GET,
                &format!("/v1/secrets/{question}"),
                &[("accept", "application/octet-stream")],
                "",
            )
            .await
    }

    /// The version and the text of what the provider gives now.
    pub async fn newest(&mut self, name: &str) -> (String, String) {
        got(self.demand(name).await)
    }

    /// The same once there is a value again; what was refused a moment ago is refused again without asking.
    pub async fn restored(&mut self, name: &str) -> (String, String) {
        got(self
            .until(name, |answer| answer.status == StatusCode::OK)
            .await)
    }

    /// Demands until the answer is the one that a test waits for.
    pub async fn until(
        &mut self,
        question: &str,
        mut is_it: impl FnMut(&Answer) -> bool,
    ) -> Answer {
        let start = Instant::now();
        loop {
            let answer = self.demand(question).await;
            if is_it(&answer) {
                return answer;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited {PATIENCE:?} for {question}: {answer:?}",
                answer = answer.body
            );
        }
    }

    /// Asks for what is held until it has another version than `former`; each answer is looked at.
    pub async fn until_replaced(
        &mut self,
        question: &str,
        former: &str,
        mut look: impl FnMut(&str),
    ) -> (String, String) {
        let start = Instant::now();
        loop {
            let (version, value) = got(self.ask(question).await);
            look(&value);
            if version != former {
                return (version, value);
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited {PATIENCE:?} for another {question}"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The same, until it has such a problem.
    pub async fn until_problem(&mut self, question: &str, code: &str) {
        let answer = self
            .until(question, |answer| {
                answer.status != StatusCode::OK && answer.json()["code"] == code
            })
            .await;
        assert_eq!(answer.problem(), code);
    }
}

/// The version and the text of an answer that is one.
pub fn got(answer: Answer) -> (String, String) {
    let answer = answer.ok();
    let json = answer.json();
    assert_eq!(
        answer.headers["sidekey-secret-version"],
        *json["version"].as_str().unwrap()
    );
    (
        json["version"].as_str().unwrap().to_owned(),
        json["value"].as_str().unwrap().to_owned(),
    )
}

/// How many reads of a secret had this result, whatever caused them.
pub fn reads(sidecar: &Sidecar, secret: &str, result: &str) -> u64 {
    let metrics = sidecar.ops("/metrics").1;
    let is_it = |line: &&str| {
        line.starts_with("sidekey_secret_fetches_total{")
            && line.contains(&format!("secret=\"{secret}\""))
            && line.contains(&format!("result=\"{result}\""))
    };
    metrics
        .lines()
        .filter(is_it)
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum()
}
