//! Rows of several columns, written and read many at a time.

use std::fmt::Write;

use sqlx::{
    Any, AnyConnection, AssertSqlSafe, Row,
    any::{AnyArguments, AnyRow},
    query::Query,
};

use super::StoreError;

/// The most rows of one statement. Both kinds of databases take some 30,000 values.
const ROWS: usize = 256;

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Text(String),
    Number(i64),
}

impl Value {
    /// A count. None is as high as a column's limit.
    pub(super) fn count(count: u64) -> Self {
        Self::Number(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// A table, as rows are written to it.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// All columns, the primary key's first.
    pub(super) columns: &'static [&'static str],
    /// How many columns the primary key has.
    pub(super) keys: usize,
    /// When a row replaces the one of the same key; empty for always.
    pub(super) replaces: &'static str,
}

type Statement<'q> = Query<'q, Any, AnyArguments>;

fn bind<'q>(statement: Statement<'q>, value: &Value) -> Statement<'q> {
    match value {
        Value::Text(text) => statement.bind(text.clone()),
        Value::Number(number) => statement.bind(*number),
    }
}

impl Table {
    /// Inserts rows, or replaces those that have their keys.
    pub(super) async fn put(
        &self,
        connection: &mut AnyConnection,
        rows: &[Vec<Value>],
    ) -> Result<(), StoreError> {
        for rows in rows.chunks(ROWS) {
            let (keys, others) = self.columns.split_at(self.keys);
            let mut text = format!(
                "INSERT INTO {} ({}) VALUES ",
                self.name,
                self.columns.join(", ")
            );
            append_values(&mut text, rows.len(), self.columns.len());
            let _ = write!(text, " ON CONFLICT ({}) DO UPDATE SET ", keys.join(", "));
            for (index, column) in others.iter().enumerate() {
                let separator = if index > 0 { ", " } else { "" };
                let _ = write!(text, "{separator}{column} = excluded.{column}");
            }
            text.push_str(self.replaces);
            execute(connection, text, rows, "write rows").await?;
        }
        Ok(())
    }

    /// Removes the rows with these keys.
    pub(super) async fn remove(
        &self,
        connection: &mut AnyConnection,
        keys: &[Vec<Value>],
    ) -> Result<(), StoreError> {
        for keys in keys.chunks(ROWS) {
            let columns = self.columns[..self.keys].join(", ");
            let mut text = format!("DELETE FROM {} WHERE ({columns}) IN (VALUES ", self.name);
            append_values(&mut text, keys.len(), self.keys);
            text.push(')');
            execute(connection, text, keys, "remove rows").await?;
        }
        Ok(())
    }
}

async fn execute(
    connection: &mut AnyConnection,
    text: String,
    rows: &[Vec<Value>],
    doing: &'static str,
) -> Result<(), StoreError> {
    let values = rows.iter().flatten();
    // Its length depends on the number of rows, so it is seldom the same again.
    let statement = sqlx::query(AssertSqlSafe(text)).persistent(false);
    values
        .fold(statement, bind)
        .execute(connection)
        .await
        .map(drop)
        .map_err(StoreError::failed(doing))
}

/// Appends `($1, $2), ($3, $4)`.
fn append_values(text: &mut String, rows: usize, columns: usize) {
    for row in 0..rows {
        let separator = if row > 0 { ", " } else { "" };
        let first = row * columns + 1;
        let _ = write!(text, "{separator}(${first}");
        for number in first + 1..first + columns {
            let _ = write!(text, ", ${number}");
        }
        text.push(')');
    }
}

/// Returns the rows for which the expression at the end of `select` is one of `values`.
pub(super) async fn select_in(
    connection: &mut AnyConnection,
    select: &'static str,
    values: &[Value],
) -> Result<Vec<AnyRow>, StoreError> {
    let mut found = Vec::new();
    for values in values.chunks(ROWS) {
        let mut text = format!("{select} IN ");
        append_values(&mut text, 1, values.len());
        let statement = sqlx::query(AssertSqlSafe(text)).persistent(false);
        let rows = values
            .iter()
            .fold(statement, bind)
            .fetch_all(&mut *connection)
            .await
            .map_err(StoreError::failed("read rows"))?;
        found.extend(rows);
    }
    Ok(found)
}

/// Returns the rows of a statement with these values.
pub(super) async fn select(
    connection: &mut AnyConnection,
    statement: &'static str,
    values: &[Value],
) -> Result<Vec<AnyRow>, StoreError> {
    values
        .iter()
        .fold(sqlx::query(statement), bind)
        .fetch_all(connection)
        .await
        .map_err(StoreError::failed("read rows"))
}

pub(super) fn text(row: &AnyRow, column: usize) -> Result<String, StoreError> {
    row.try_get(column)
        .map_err(StoreError::failed("read a column"))
}

pub(super) fn number(row: &AnyRow, column: usize) -> Result<i64, StoreError> {
    row.try_get(column)
        .map_err(StoreError::failed("read a column"))
}

pub(super) fn count(row: &AnyRow, column: usize) -> Result<u64, StoreError> {
    Ok(u64::try_from(number(row, column)?).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_in_order() {
        let mut text = String::new();
        append_values(&mut text, 2, 3);
        assert_eq!(text, "($1, $2, $3), ($4, $5, $6)");
    }
}
