//! Current values of Secrets Manager, many in one request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_secretsmanager::{
    Client, operation::get_secret_value::GetSecretValueOutput, types::SecretValueEntry,
};
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::{sync::oneshot, time::sleep};
use tracing::info;
use zeroize::Zeroizing;

use super::{Fault, fault, said, timestamp};
use crate::backend::{KekFault, heard};

/// How long the first waits for others.
const WINDOW: Duration = Duration::from_millis(10);
/// How many secrets one request names (AWS' limit).
const MOST: usize = 20;

/// Where current values of one region are asked for. What is asked at about the same time goes out together.
pub(super) struct Desk {
    client: Client,
    waiting: Mutex<Vec<Request>>,
    /// Whether our role may ask for many at once, as far as we know: it takes a right of its own.
    may_batch: AtomicBool,
}

/// One who waits for a value.
struct Request {
    id: String,
    ears: Vec<heard::Ear>,
    answer: oneshot::Sender<Result<Value, Fault>>,
}

/// A value, and what AWS knows about it.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) version: String,
    pub(super) created_at: Option<Timestamp>,
}

impl Value {
    /// Of what AWS gives: text, or else bytes. The SDK's own copies of the answer are not zeroized.
    pub(super) fn new(answer: GetSecretValueOutput) -> Option<Self> {
        let text = answer.secret_string.map(String::into_bytes);
        let bytes = text.or_else(|| answer.secret_binary.map(|binary| binary.into_inner()))?;
        Some(Self {
            bytes: Zeroizing::new(bytes),
            version: answer.version_id?,
            created_at: timestamp(answer.created_date),
        })
    }
}

impl Desk {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            waiting: Mutex::default(),
            may_batch: AtomicBool::new(true),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The current value of a secret.
    pub(super) async fn current(self: &Arc<Self>, id: &str) -> Result<Value, Fault> {
        if !self.may_batch.load(Ordering::Relaxed) {
            return self.one(id).await;
        }
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(Request {
                id: id.to_owned(),
                ears: heard::ears(),
                answer,
            });
            waiting.len() == 1
        };
        if is_first {
            let desk = Arc::clone(self);
            // In a task of its own: whoever stops waiting takes nothing from the others.
            tokio::spawn(async move {
                sleep(WINDOW).await;
                desk.ask().await;
            });
        }
        let broken = |_| Fault::new(KekFault::Unavailable, "the request was given up");
        answered.await.map_err(broken)?
    }

    async fn ask(&self) {
        let waiting =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        // Many may want the same secret.
        let mut ids: BTreeMap<String, Vec<Request>> = BTreeMap::new();
        for request in waiting {
            ids.entry(request.id.clone()).or_default().push(request);
        }
        let mut batches = Vec::new();
        while !ids.is_empty() {
            let rest = ids
                .keys()
                .nth(MOST)
                .cloned()
                .map(|first| ids.split_off(&first))
                .unwrap_or_default();
            batches.push(std::mem::replace(&mut ids, rest));
        }
        join_all(batches.into_iter().map(|batch| self.ask_batch(batch))).await;
    }

    async fn ask_batch(&self, mut batch: BTreeMap<String, Vec<Request>>) {
        let ears = batch
            .values()
            .flatten()
            .flat_map(|request| request.ears.clone())
            .collect();
        let ids: Vec<String> = batch.keys().cloned().collect();
        let answers = {
            let everybody_left = join_all(
                batch
                    .values_mut()
                    .flatten()
                    .map(|request| request.answer.closed()),
            );
            tokio::select! {
                answers = heard::for_all(ears, self.values(ids)) => answers,
                _ = everybody_left => return,
            }
        };
        for (id, requests) in batch {
            let missing = || {
                Err(Fault::new(
                    KekFault::Unavailable,
                    "AWS' answer doesn't mention the secret",
                ))
            };
            let answer = answers.get(&id).cloned().unwrap_or_else(missing);
            for request in requests {
                // Whoever left needs no answer.
                let _ = request.answer.send(answer.clone());
            }
        }
    }

    async fn values(&self, mut ids: Vec<String>) -> BTreeMap<String, Result<Value, Fault>> {
        let mut answers = BTreeMap::new();
        if ids.len() > 1 {
            match self.many(&ids).await {
                Ok(found) => answers = found,
                // One that can't be named so, or has no value, spoils a request for all; the role may lack the right. Then each is asked
                // for by itself, and only what is wrong fails.
                Err(_) if !self.may_batch.load(Ordering::Relaxed) => {}
                Err(Fault {
                    kind: KekFault::Missing | KekFault::Misconfigured,
                    ..
                }) => {}
                Err(fault) => return ids.into_iter().map(|id| (id, Err(fault.clone()))).collect(),
            }
            ids.retain(|id| !answers.contains_key(id));
        }
        let each = join_all(ids.into_iter().map(async |id| {
            let answer = self.one(&id).await;
            (id, answer)
        }));
        answers.extend(each.await);
        answers
    }

    /// The values of several secrets, or why there is none, as far as AWS mentions them.
    async fn many(&self, ids: &[String]) -> Result<BTreeMap<String, Result<Value, Fault>>, Fault> {
        let answer = self
            .client
            .batch_get_secret_value()
            .set_secret_id_list(Some(ids.to_vec()))
            .send()
            .await;
        let answer = answer.map_err(|error| {
            let fault = fault(&error);
            if fault.kind == KekFault::Denied && fault.reason.contains("AccessDenied") {
                info!(
                    "the role lacks secretsmanager:BatchGetSecretValue on \"*\", so secrets are read one by one; reading many at once costs fewer requests"
                );
                self.may_batch.store(false, Ordering::Relaxed);
            }
            fault
        })?;
        let mut answers = BTreeMap::new();
        for error in answer.errors.unwrap_or_default() {
            let (code, message) = (
                error.error_code.unwrap_or_default(),
                error.message.unwrap_or_default(),
            );
            if let Some(id) = error.secret_id {
                answers.insert(id, Err(said(&code, &message)));
            }
        }
        for entry in answer.secret_values.unwrap_or_default() {
            let asked: Vec<&String> = ids.iter().filter(|id| is_named(&entry, id)).collect();
            let value = Value::new(output(entry));
            for id in asked {
                if let Some(value) = &value {
                    answers.insert(id.clone(), Ok(value.clone()));
                }
            }
        }
        Ok(answers)
    }

    async fn one(&self, id: &str) -> Result<Value, Fault> {
        let answer = self
            .client
            .get_secret_value()
            .secret_id(id)
            .version_stage("AWSCURRENT")
            .send()
            .await
            .map_err(|error| fault(&error))?;
        Value::new(answer).ok_or_else(|| {
            Fault::new(
                KekFault::Unavailable,
                "AWS answered without a value or a version",
            )
        })
    }
}

/// Whether a value is that of the secret that `id` names: its name, its ARN, or its ARN without the six characters that AWS puts at
/// the end of one.
fn is_named(entry: &SecretValueEntry, id: &str) -> bool {
    let is_partial = |arn: &str| {
        arn.strip_prefix(id)
            .is_some_and(|rest| rest.len() == 7 && rest.starts_with('-'))
    };
    entry.name() == Some(id)
        || entry
            .arn()
            .is_some_and(|arn| arn == id || id.starts_with("arn:") && is_partial(arn))
}

/// The same as if it had been asked for by itself.
fn output(entry: SecretValueEntry) -> GetSecretValueOutput {
    GetSecretValueOutput::builder()
        .set_secret_string(entry.secret_string)
        .set_secret_binary(entry.secret_binary)
        .set_version_id(entry.version_id)
        .set_created_date(entry.created_date)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_answers_to_its_name_and_its_arn() {
        let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders/db-a1B2c3";
        let entry = SecretValueEntry::builder()
            .name("orders/db")
            .arn(arn)
            .build();
        for name in ["orders/db", arn, &arn[..arn.len() - 7]] {
            assert!(is_named(&entry, name), "{name}");
        }
        for other in [
            "orders",
            "orders/db-a1B2c3",
            &arn[..arn.len() - 6],
            &arn[..arn.len() - 10],
            "",
        ] {
            assert!(!is_named(&entry, other), "{other}");
        }
    }
}
