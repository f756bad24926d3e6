//! Heartbeats: what no replica watched, and a database that lost what it had confirmed.
//!
//! Every replica counts its writes in a row of its own, and remembers the count. If the row says
//! another number, the database was restored from a backup, or failed over to a copy that lacked
//! the last writes. If no replica was running when it was restored, the last heartbeat in it is
//! old: that of a hub that was down.

use jiff::Timestamp;
use sqlx::AnyConnection;

use super::{
    StoreError, ledger,
    rows::{self, Table, Value},
};
use crate::{
    ledger::{Cause, Gap, WATCHED_WITHIN},
    model::Span,
};

/// How long the rows of replicas that have ended are kept, in milliseconds.
const KEPT: i64 = 24 * 3600 * 1000;

const REPLICAS: Table = Table {
    name: "replicas",
    columns: &["replica", "number", "beat_at"],
    keys: 1,
    replaces: "",
};

/// The writes of this replica.
#[derive(Debug)]
pub(super) struct Beat {
    /// The last one that is known to be in the database; 0 before the first.
    pub(super) written: i64,
    /// The last one that may be.
    pub(super) attempted: i64,
    /// How often reports could not be stored, as far as the database says so.
    pub(super) not_stored: u64,
    /// After which silence a process is given up.
    pub(super) lost_after: Span,
}

/// Writes a heartbeat, and a gap if there was one. Returns its number.
pub(super) async fn beat(
    connection: &mut AnyConnection,
    replica: &str,
    beat: &mut Beat,
    now: Timestamp,
) -> Result<i64, StoreError> {
    let select = "SELECT replica, number, beat_at FROM replicas";
    let mut own = None;
    let mut last = None;
    for row in &rows::select(connection, select, &[]).await? {
        last = last.max(Some(rows::number(row, 2)?));
        if rows::text(row, 0)? == replica {
            own = Some(rows::number(row, 1)?);
        }
    }
    let last = last.and_then(|last| Timestamp::from_millisecond(last).ok());
    if let Some(gap) = gap(beat, own, last, now) {
        tracing::warn!(cause = %gap.cause, from = ?gap.from, until = %gap.until, "not watched");
        ledger::put_gaps(connection, &[gap]).await?;
    }
    if own == Some(beat.attempted) {
        // The last write is there after all, whatever becomes of this one.
        beat.written = beat.attempted;
    }
    let number = beat.written.max(own.unwrap_or(0)) + 1;
    let now = now.as_millisecond();
    let row = vec![replica.into(), Value::Number(number), Value::Number(now)];
    REPLICAS.put(connection, &[row]).await?;
    sqlx::query("DELETE FROM replicas WHERE beat_at < $1 AND replica <> $2")
        .bind(now.saturating_sub(KEPT))
        .bind(replica)
        .execute(connection)
        .await
        .map_err(StoreError::failed("remove heartbeats"))?;
    Ok(number)
}

/// Returns the time until `now` that wasn't watched, if there is one. `own` is the number in the
/// database, and `last` the last heartbeat of any replica.
fn gap(beat: &Beat, own: Option<i64>, last: Option<Timestamp>, now: Timestamp) -> Option<Gap> {
    let cause = cause(beat, own, last, now)?;
    let until = match cause {
        // A process that isn't in the database, and was cut off before, may live on unseen until a
        // hub that remembered it would have given it up.
        Cause::Created | Cause::Restored => {
            now.checked_add(beat.lost_after.0).unwrap_or(Timestamp::MAX)
        }
        // A replica whose clock is ahead judges by that clock.
        _ => last.map_or(now, |last| last.max(now)),
    };
    Some(Gap {
        until,
        from: last,
        keyring: None,
        workload: None,
        cause,
    })
}

/// Returns the gap of reports that could not be stored until `now`.
pub(super) fn not_stored(now: Timestamp) -> Gap {
    Gap {
        until: now,
        from: None,
        keyring: None,
        workload: None,
        cause: Cause::NotStored,
    }
}

fn cause(beat: &Beat, own: Option<i64>, last: Option<Timestamp>, now: Timestamp) -> Option<Cause> {
    let is_known = own == Some(beat.written) || own == Some(beat.attempted);
    if beat.written > 0 && !is_known {
        return Some(Cause::Restored);
    }
    let Some(last) = last else {
        return Some(Cause::Created);
    };
    // One in the future is by a clock that can't be compared.
    let distance = now.duration_since(last).unsigned_abs();
    (distance > WATCHED_WITHIN).then_some(Cause::HubDown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn beat(written: i64, attempted: i64) -> Beat {
        Beat {
            written,
            attempted,
            not_stored: 0,
            lost_after: Span::from_secs(100),
        }
    }

    #[test]
    fn what_heartbeats_show() {
        let now = second(1000);
        let fresh = Some(second(990));
        let cases = [
            (beat(0, 0), None, None, Some(Cause::Created)),
            (beat(0, 0), None, fresh, None),
            (beat(0, 0), None, Some(second(985)), None),
            (beat(0, 0), None, Some(second(984)), Some(Cause::HubDown)),
            (beat(0, 0), None, Some(second(1016)), Some(Cause::HubDown)),
            (beat(3, 3), Some(3), fresh, None),
            (beat(3, 3), Some(3), Some(second(900)), Some(Cause::HubDown)),
            (beat(3, 4), Some(3), fresh, None),
            (beat(3, 4), Some(4), fresh, None),
            (beat(3, 3), Some(2), fresh, Some(Cause::Restored)),
            (beat(3, 3), Some(4), fresh, Some(Cause::Restored)),
            (beat(3, 4), Some(2), fresh, Some(Cause::Restored)),
            (beat(3, 3), None, fresh, Some(Cause::Restored)),
            (beat(3, 3), None, None, Some(Cause::Restored)),
        ];
        for (beat, own, last, expected) in cases {
            assert_eq!(
                cause(&beat, own, last, now),
                expected,
                "{beat:?} {own:?} {last:?}"
            );
        }
    }

    #[test]
    fn a_new_or_restored_database_may_have_missed_what_lives_on_unseen() {
        let now = second(1000);
        let until = |beat: &Beat, last| gap(beat, None, last, now).map(|gap| gap.until);
        assert_eq!(until(&beat(0, 0), None), Some(second(1100)));
        assert_eq!(until(&beat(3, 3), None), Some(second(1100)));
        assert_eq!(until(&beat(0, 0), Some(second(500))), Some(now));
        let ahead = Some(second(2000));
        assert_eq!(until(&beat(0, 0), ahead), ahead, "by the other clock");
    }
}
