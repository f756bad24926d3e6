//! What requests read of the instances.

use sqlx::any::AnyRow;

use super::{
    Store, StoreError, ledger, reports,
    rows::{self, Value},
    wait_for,
};
use crate::{
    encoding::to_hex,
    hub::registry::{Instance, InstanceId},
};

/// Whose an instance is.
pub(in crate::hub) struct Owner {
    pub(in crate::hub) identity: String,
    pub(in crate::hub) name: String,
    pub(in crate::hub) workload: String,
}

impl Store {
    /// Returns whose an instance is that has reported.
    ///
    /// # Errors
    /// The database can't be read.
    pub(in crate::hub) async fn find(
        &self,
        instance: &InstanceId,
    ) -> Result<Option<Owner>, StoreError> {
        let select = "SELECT identity, name, workload FROM instances WHERE instance = $1";
        let found = self.read(select, &[Value::Text(to_hex(instance))]).await?;
        let owner = |row: &AnyRow| {
            Ok(Owner {
                identity: rows::text(row, 0)?,
                name: rows::text(row, 1)?,
                workload: rows::text(row, 2)?,
            })
        };
        found.first().map(owner).transpose()
    }

    /// Returns up to `limit` instances that have not ended, by name and id, after `after`.
    ///
    /// # Errors
    /// The database can't be read.
    pub(in crate::hub) async fn open_instances(
        &self,
        after: Option<&(String, InstanceId)>,
        limit: usize,
    ) -> Result<Vec<Instance>, StoreError> {
        let select = "SELECT instance, name, workload, received_at, status FROM instances \
                      WHERE ended = 0 AND (name, instance) > ($1, $2) \
                      ORDER BY name, instance LIMIT $3";
        let (name, instance) = after.map_or_else(
            || (String::new(), String::new()),
            |(name, instance)| (name.clone(), to_hex(instance)),
        );
        let limit = Value::count(limit as u64);
        let values = [Value::Text(name), Value::Text(instance), limit];
        let found = self.read(select, &values).await?;
        found.iter().map(instance_in).collect()
    }

    /// Returns the names of the instances that have not ended and not answered a barrier.
    ///
    /// # Errors
    /// The database can't be read.
    pub(in crate::hub) async fn unanswered(&self, barrier: u64) -> Result<Vec<String>, StoreError> {
        let select = "SELECT name FROM instances WHERE ended = 0 AND answered < $1 \
                      ORDER BY name, instance";
        let found = self.read(select, &[Value::count(barrier)]).await?;
        found.iter().map(|row| rows::text(row, 0)).collect()
    }

    async fn read(
        &self,
        select: &'static str,
        values: &[Value],
    ) -> Result<Vec<AnyRow>, StoreError> {
        let read = async {
            let mut connection = self
                .pool
                .acquire()
                .await
                .map_err(StoreError::failed("get a connection"))?;
            rows::select(&mut connection, select, values).await
        };
        wait_for(read)
            .await
            .inspect_err(|_| self.health.failed_to_read())
    }
}

fn instance_in(row: &AnyRow) -> Result<Instance, StoreError> {
    let status = rows::text(row, 4)?;
    Ok(Instance {
        id: reports::hex(&rows::text(row, 0)?)?,
        name: rows::text(row, 1)?,
        workload: rows::text(row, 2)?,
        received_at: ledger::time(row, 3)?,
        status: serde_json::from_str(&status)
            .map_err(|error| StoreError::damaged("instances", error))?,
    })
}
