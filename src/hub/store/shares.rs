//! What each identity takes up, as rows. Each write updates them, because counting the whole fleet
//! takes long.

use sqlx::AnyConnection;

use super::{
    StoreError,
    rows::{self, Table, Value},
};
use crate::{config::HubLimits, hub::shares::Shares};

const SHARES: Table = Table {
    name: "shares",
    columns: &["identity", "instances", "bytes", "keyrings"],
    keys: 1,
    replaces: "",
};

pub(super) async fn load(
    connection: &mut AnyConnection,
    limits: &HubLimits,
) -> Result<Shares, StoreError> {
    let mut shares = Shares::new(limits);
    let select = "SELECT identity, instances, bytes, keyrings FROM shares";
    for row in &rows::select(connection, select, &[]).await? {
        let amounts = [
            rows::count(row, 1)?,
            rows::count(row, 2)?,
            rows::count(row, 3)?,
        ];
        shares.held.insert(rows::text(row, 0)?, amounts);
    }
    Ok(shares)
}

pub(super) async fn save(
    connection: &mut AnyConnection,
    before: &Shares,
    after: &Shares,
) -> Result<(), StoreError> {
    let held = after.held.iter();
    let changed = held.filter(|(identity, held)| before.held.get(*identity) != Some(held));
    let rows: Vec<_> = changed
        .map(|(identity, held)| {
            let amounts = held.iter().map(|amount| Value::count(*amount));
            [Value::Text(identity.clone())]
                .into_iter()
                .chain(amounts)
                .collect()
        })
        .collect();
    SHARES.put(connection, &rows).await
}
