//! A sidecar that serves secrets, and an application that requests them.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use tokio::time::sleep;

use super::harness::{Answer, Client, PATIENCE, Sidecar, World};

/// Reads only when a test requests it; tests that need an interval set one.
pub const ON_DEMAND: &str = "[secrets]\nrefresh = \"1h\"\nforce_interval = \"1ms\"\n\
    miss_ttl = \"1ms\"\n\
    [refresh]\nmax_backoff = \"100ms\"\nread_timeout = \"20s\"\n";

/// Returns a secret's config entry, with more lines. The sidecar is ready when it has a value.
pub fn entry(name: &str, source: &str, more: &str) -> String {
    format!("[[secret]]\nname = {name:?}\nsource = {source:?}\nrequired = true\n{more}\n")
}

/// Starts a sidecar with these settings in addition to [`ON_DEMAND`].
pub fn launch(world: &World, config: &str) -> Sidecar {
    launch_as(world, "one", config)
}

/// Like `launch`, but with a name.
pub fn launch_as(world: &World, name: &str, config: &str) -> Sidecar {
    world.launch(name, &format!("{ON_DEMAND}{config}"), &[])
}

/// An application's connection.
pub struct App(Client);

impl App {
    pub async fn of(sidecar: &Sidecar) -> Self {
        Self(sidecar.client().await)
    }

    /// Requests the cached value. `question` is a name, or a name and a query.
    pub async fn ask(&mut self, question: &str) -> Answer {
        self.0
            .send(Method::GET, &format!("/v1/secrets/{question}"), &[], "")
            .await
    }

    /// Requests the provider's current value.
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

    /// Returns the bytes of the cached value.
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

    /// Returns the version and text of the provider's current value.
    pub async fn newest(&mut self, name: &str) -> (String, String) {
        got(self.demand(name).await)
    }

    /// Like `newest`, but waits until there is a value again, because a recent failure is cached.
    pub async fn restored(&mut self, name: &str) -> (String, String) {
        got(self
            .until(name, |answer| answer.status == StatusCode::OK)
            .await)
    }

    /// Requests the current value until the response is the expected one.
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

    /// Requests the cached value until its version differs from `former`, and passes each response
    /// to the check.
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

    /// Requests the current value until it fails with this problem.
    pub async fn until_problem(&mut self, question: &str, code: &str) {
        let answer = self
            .until(question, |answer| {
                answer.status != StatusCode::OK && answer.json()["code"] == code
            })
            .await;
        assert_eq!(answer.problem(), code);
    }
}

/// Returns the version and text of a successful response.
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

/// Returns how many reads of a secret had this result, whatever triggered them.
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
