//! Reports, many in one write.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use sqlx::AnyConnection;

use super::{
    Store, StoreError, ledger,
    rows::{self, Table, Value},
    schema, shares,
};
use crate::{
    encoding::{from_hex, to_hex},
    hub::registry::{Entry, Incoming, InstanceId, Outcome, Part},
    ledger::Ledger,
};

const INSTANCES: Table = Table {
    name: "instances",
    columns: &[
        "instance",
        "identity",
        "public_key",
        "name",
        "workload",
        "sequence",
        "digest",
        "received_at",
        "answered",
        "ended",
        "size",
        "status",
    ],
    keys: 1,
    replaces: "",
};

impl Store {
    /// Takes reports, in their order, all of them durably or none.
    ///
    /// # Errors
    /// The database can't be read or written.
    pub(in crate::hub) async fn take(
        &self,
        reports: &[Incoming<'_>],
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let write = async {
            let mut change = self.change(now).await?;
            let before = self.load(change.connection(), reports).await?;
            let mut part = before.clone();
            let outcomes = reports
                .iter()
                .map(|incoming| part.take(incoming, &self.workloads))
                .collect();
            save(change.connection(), &before, &part).await?;
            change.commit().await?;
            Ok(outcomes)
        };
        self.write(write).await
    }

    /// Reads what the reports concern.
    async fn load(
        &self,
        connection: &mut AnyConnection,
        reports: &[Incoming<'_>],
    ) -> Result<Part, StoreError> {
        let reports = || reports.iter().map(|incoming| &incoming.received.report);
        let instances = values(reports().map(|report| to_hex(&report.instance)));
        let usages = reports().flat_map(|report| &report.usage);
        let keyrings = values(usages.map(|usage| to_hex(&usage.id)));
        let names: BTreeSet<&str> = reports().map(|report| report.workload.as_str()).collect();

        let select = "SELECT instance, identity, public_key, name, workload, sequence, digest, \
                      received_at, answered, ended, size FROM instances WHERE instance";
        let found = rows::select_in(connection, select, &instances).await?;
        let entries: Result<BTreeMap<_, _>, _> = found.iter().map(entry).collect();
        let select = "SELECT instance, keyring, body FROM books WHERE instance";
        let books = ledger::books(&rows::select_in(connection, select, &instances).await?)?;
        // Few workloads use a keyring.
        let select = "SELECT keyring, workload, body FROM summaries WHERE keyring";
        let summaries = rows::select_in(connection, select, &keyrings).await?;
        let summaries = ledger::summaries(&summaries)?;
        let known = summaries.keys().map(|(keyring, _)| *keyring).collect();
        let summaries = summaries
            .into_iter()
            .filter(|((_, workload), _)| names.contains(workload.as_str()));
        let barrier = schema::number(connection, schema::BARRIER).await?;
        Ok(Part {
            entries: entries?,
            statuses: BTreeMap::new(),
            ledger: Ledger {
                books,
                summaries: summaries.collect(),
                ..Ledger::default()
            },
            known,
            shares: shares::load(connection, &self.limits).await?,
            barrier: u64::try_from(barrier).unwrap_or_default(),
        })
    }
}

/// Returns each text once.
fn values(texts: impl Iterator<Item = String>) -> Vec<Value> {
    let texts: BTreeSet<String> = texts.collect();
    texts.into_iter().map(Value::Text).collect()
}

async fn save(
    connection: &mut AnyConnection,
    before: &Part,
    after: &Part,
) -> Result<(), StoreError> {
    let taken = after.statuses.iter();
    let taken: Vec<_> = taken
        .filter_map(|(instance, status)| {
            let entry = after.entries.get(instance)?;
            Some(entry_row(instance, entry, status))
        })
        .collect();
    INSTANCES.put(connection, &taken).await?;
    shares::save(connection, &before.shares, &after.shares).await?;
    ledger::save(connection, &before.ledger, &after.ledger).await
}

fn entry_row(instance: &InstanceId, entry: &Entry, status: &str) -> Vec<Value> {
    vec![
        Value::Text(to_hex(instance)),
        Value::Text(entry.identity.clone()),
        Value::Text(to_hex(&entry.key)),
        Value::Text(entry.name.clone()),
        Value::Text(entry.workload.clone()),
        Value::count(entry.sequence),
        Value::Text(to_hex(&entry.digest)),
        Value::Number(entry.received_at.as_millisecond()),
        Value::count(entry.answered),
        Value::Number(entry.has_ended.into()),
        Value::count(entry.size),
        status.into(),
    ]
}

fn entry(row: &sqlx::any::AnyRow) -> Result<(InstanceId, Entry), StoreError> {
    let entry = Entry {
        identity: rows::text(row, 1)?,
        key: hex(&rows::text(row, 2)?)?,
        name: rows::text(row, 3)?,
        workload: rows::text(row, 4)?,
        sequence: rows::count(row, 5)?,
        digest: hex(&rows::text(row, 6)?)?,
        received_at: ledger::time(row, 7)?,
        answered: rows::count(row, 8)?,
        has_ended: rows::number(row, 9)? != 0,
        size: rows::count(row, 10)?,
    };
    Ok((hex(&rows::text(row, 0)?)?, entry))
}

pub(super) fn hex<const N: usize>(text: &str) -> Result<[u8; N], StoreError> {
    from_hex(text.as_bytes())
        .ok_or_else(|| StoreError::damaged(INSTANCES.name, "no hexadecimal digits"))
}
