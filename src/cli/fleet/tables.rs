//! The rows of the inventory's tables; the first is the heading.

use std::{fmt::Display, time::Duration};

use jiff::Timestamp;

use super::Detail;
use crate::{
    fleet::inventory::{KeyRow, ServedKeyring, SidecarRow},
    model::Span,
    wire::status::HubStatus,
};

/// How many digits of an instance people need.
const SHORT_INSTANCE: usize = 8;
const DAY: u64 = 24 * 60 * 60;

/// One row for each keyring of each sidecar.
pub(super) fn sidecar_rows(sidecars: &[SidecarRow], detail: Detail) -> Vec<Vec<String>> {
    const HEADING: [&str; 12] = [
        "sidecar",
        "workload",
        "build",
        "instance",
        "ready",
        "keyring",
        "wave",
        "generation",
        "encrypting",
        "lag",
        "hub",
        "unreachable",
    ];
    let mut rows = vec![heading(&HEADING, detail)];
    for row in sidecars {
        if row.keyrings.is_empty() {
            rows.push(sidecar_row(row, None, detail));
        }
        for served in &row.keyrings {
            rows.push(sidecar_row(row, Some(served), detail));
        }
    }
    rows
}

fn sidecar_row(row: &SidecarRow, served: Option<&ServedKeyring>, detail: Detail) -> Vec<String> {
    let instance = row.instance.as_deref().map(|instance| match detail {
        Detail::Short => instance.get(..SHORT_INSTANCE).unwrap_or(instance),
        Detail::Full => instance,
    });
    let ready = row
        .ready
        .map(|is_ready| if is_ready { "yes" } else { "no" });
    let fields = [
        Some(row.sidecar.clone()),
        row.workload.clone(),
        row.build.clone(),
        text(instance),
        text(ready),
        text(served.map(|served| &served.keyring)),
        text(served.map(|served| &served.wave)),
        text(served.and_then(|served| served.generation)),
        text(served.and_then(|served| served.encrypting)),
        text(served.and_then(|served| served.lag)),
        row.hub.as_ref().map(hub),
        row.unreachable.clone(),
    ];
    cells(fields, detail)
}

/// Since when a sidecar is connected to its hub, its last report that was accepted, and why the
/// last connection or report failed.
fn hub(hub: &HubStatus) -> String {
    let mut words = vec![match hub.connected_since {
        Some(since) => format!("connected since {since:.0}"),
        None => "not connected".into(),
    }];
    words.extend(hub.last_report.map(|at| format!("reported {at:.0}")));
    let failure = hub.last_error.as_ref();
    words.extend(failure.map(|error| format!("{} at {:.0}", error.code, error.at)));
    words.join(", ")
}

/// One row for each version.
pub(super) fn key_rows(keys: &[KeyRow], now: Timestamp, detail: Detail) -> Vec<Vec<String>> {
    const SHORT: [&str; 10] = [
        "keyring",
        "version",
        "state",
        "roles",
        "age",
        "sidecars",
        "unopened",
        "last use",
        "encrypted",
        "decrypted",
    ];
    const FULL: [&str; 13] = [
        "keyring",
        "id",
        "version",
        "state",
        "compromised",
        "roles",
        "created_at",
        "sidecars",
        "unopened",
        "last_used",
        "encrypted",
        "decrypted",
        "uses_are_complete",
    ];
    match detail {
        Detail::Short => {
            let rows = keys.iter().map(|row| cells(short(row, now), detail));
            [heading(&SHORT, detail)].into_iter().chain(rows).collect()
        }
        Detail::Full => {
            let rows = keys.iter().map(|row| cells(full(row), detail));
            [heading(&FULL, detail)].into_iter().chain(rows).collect()
        }
    }
}

fn short(row: &KeyRow, now: Timestamp) -> [Option<String>; 10] {
    let state = if row.compromised {
        format!("{}, compromised", row.state)
    } else {
        row.state.clone()
    };
    // A count that older builds don't report all of is a lower bound.
    let more = if row.uses_are_complete { "" } else { "+" };
    [
        text(Some(&row.keyring)),
        text(Some(row.version)),
        Some(state),
        Some(roles(row)),
        Some(age(row.created_at, now)),
        Some(generations(row)),
        text((row.unopened > 0).then_some(row.unopened)),
        row.last_used.map(|at| format!("{at:.0}")),
        Some(format!("{}{more}", row.uses.encrypted)),
        Some(format!("{}{more}", row.uses.decrypted)),
    ]
}

fn full(row: &KeyRow) -> [Option<String>; 13] {
    [
        text(Some(&row.keyring)),
        text(Some(&row.id)),
        text(Some(row.version)),
        text(Some(&row.state)),
        text(Some(row.compromised)),
        Some(roles(row)),
        text(Some(row.created_at)),
        Some(generations(row)),
        text(Some(row.unopened)),
        text(row.last_used),
        text(Some(row.uses.encrypted)),
        text(Some(row.uses.decrypted)),
        text(Some(row.uses_are_complete)),
    ]
}

fn roles(row: &KeyRow) -> String {
    let roles: Vec<String> = row
        .roles
        .iter()
        .map(|(wave, role)| format!("{wave}={role}"))
        .collect();
    roles.join(" ")
}

/// How many sidecars have which generation, the newest first.
fn generations(row: &KeyRow) -> String {
    let generations: Vec<String> = row
        .generations
        .iter()
        .rev()
        .map(|(generation, count)| format!("{count}@{generation}"))
        .collect();
    generations.join(" ")
}

/// In days, or in seconds within the first day.
fn age(created_at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(created_at).as_secs();
    // A sidecar's clock may be ahead.
    let seconds = u64::try_from(seconds).unwrap_or(0);
    if seconds < DAY {
        return Span(Duration::from_secs(seconds)).to_string();
    }
    format!("{}d", seconds / DAY)
}

fn heading(names: &[&str], detail: Detail) -> Vec<String> {
    let name = |name: &&str| match detail {
        Detail::Short => name.to_uppercase(),
        Detail::Full => (*name).to_owned(),
    };
    names.iter().map(name).collect()
}

fn text(value: Option<impl Display>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// What is unknown is a dash for people, and empty for programs.
fn cells<const N: usize>(fields: [Option<String>; N], detail: Detail) -> Vec<String> {
    let missing = match detail {
        Detail::Short => "-",
        Detail::Full => "",
    };
    let cell = |field: Option<String>| match field {
        Some(text) if !text.is_empty() => text,
        _ => missing.to_owned(),
    };
    fields.map(cell).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::wire::status::{LastError, VersionUses};

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn key() -> KeyRow {
        KeyRow {
            keyring: "orders".parse().expect("a name"),
            id: "6aa04d462abfa7a377ccded916eb6fd8".into(),
            version: 2,
            state: "enabled".into(),
            compromised: true,
            roles: [("canary", "primary"), ("standard", "pending")]
                .map(|(wave, role)| (wave.parse().expect("a wave"), role.to_owned()))
                .into(),
            created_at: time("2026-11-24T12:00:00Z"),
            generations: BTreeMap::from([(5, 1), (6, 2)]),
            unopened: 0,
            last_used: Some(time("2026-11-25T13:00:00.25Z")),
            uses: VersionUses {
                encrypted: 3,
                decrypted: 0,
                refused: 0,
                open: 0,
            },
            uses_are_complete: false,
        }
    }

    #[test]
    fn people_get_a_short_table_of_keys() {
        let rows = key_rows(&[key()], time("2026-11-26T11:00:00Z"), Detail::Short);
        assert_eq!(
            rows[1],
            [
                "orders",
                "2",
                "enabled, compromised",
                "canary=primary standard=pending",
                "1d",
                "2@6 1@5",
                "-",
                "2026-11-25T13:00:00Z",
                "3+",
                "0+",
            ]
        );
        assert_eq!(rows[0].len(), rows[1].len());
        assert_eq!(rows[0][7], "LAST USE");
    }

    #[test]
    fn programs_get_everything() {
        let rows = key_rows(&[key()], time("2026-11-26T11:00:00Z"), Detail::Full);
        assert_eq!(rows[0].len(), rows[1].len());
        let row: BTreeMap<_, _> = rows[0].iter().zip(&rows[1]).collect();
        let cell = |name: &str| row[&name.to_owned()].as_str();
        assert_eq!(cell("last_used"), "2026-11-25T13:00:00.25Z");
        assert_eq!(cell("encrypted"), "3");
        assert_eq!(cell("uses_are_complete"), "false");
    }

    #[test]
    fn a_sidecar_that_does_not_answer_has_a_row() {
        let served = |keyring: &str, lag| ServedKeyring {
            keyring: keyring.parse().expect("a name"),
            id: None,
            wave: "canary".parse().expect("a wave"),
            generation: Some(7),
            encrypting: Some(1),
            lag,
        };
        let answers = SidecarRow {
            sidecar: "a".into(),
            url: Some("http://a".into()),
            workload: Some("shop".into()),
            unreachable: None,
            build: Some("0.1.0".into()),
            instance: Some("0123456789abcdef0123456789abcdef".into()),
            ready: Some(true),
            hub: Some(HubStatus {
                url: "https://hub:1".into(),
                connected_since: Some(time("2026-11-24T12:00:00Z")),
                last_report: Some(time("2026-11-24T12:01:00Z")),
                last_error: None,
            }),
            keyrings: vec![served("orders", Some(0)), served("users", None)],
        };
        let silent = SidecarRow {
            sidecar: "b".into(),
            url: None,
            workload: None,
            unreachable: Some("no connection within 2s".into()),
            build: None,
            instance: None,
            ready: None,
            hub: None,
            keyrings: Vec::new(),
        };
        let cut_off = SidecarRow {
            sidecar: "c".into(),
            hub: Some(HubStatus {
                url: "https://hub:1".into(),
                connected_since: None,
                last_report: Some(time("2026-11-24T12:01:00Z")),
                last_error: Some(LastError {
                    at: time("2026-11-24T12:02:00Z"),
                    code: "hub_refused".into(),
                    message: "no".into(),
                }),
            }),
            unreachable: None,
            url: None,
            workload: None,
            build: None,
            instance: None,
            ready: Some(true),
            keyrings: Vec::new(),
        };
        let rows = sidecar_rows(&[answers, silent, cut_off], Detail::Short);
        let shown: Vec<String> = rows.iter().map(|row| row.join("|")).collect();
        let expected = [
            "SIDECAR|WORKLOAD|BUILD|INSTANCE|READY|KEYRING|WAVE|GENERATION|ENCRYPTING|LAG|HUB|\
             UNREACHABLE",
            "a|shop|0.1.0|01234567|yes|orders|canary|7|1|0|connected since 2026-11-24T12:00:00Z, \
             reported 2026-11-24T12:01:00Z|-",
            "a|shop|0.1.0|01234567|yes|users|canary|7|1|-|connected since 2026-11-24T12:00:00Z, \
             reported 2026-11-24T12:01:00Z|-",
            "b|-|-|-|-|-|-|-|-|-|-|no connection within 2s",
            "c|-|-|-|yes|-|-|-|-|-|not connected, reported 2026-11-24T12:01:00Z, hub_refused at \
             2026-11-24T12:02:00Z|-",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_age_is_in_days() {
        let created = time("2026-11-24T12:00:00Z");
        for (now, shown) in [
            ("2026-11-24T11:59:00Z", "0s"),
            ("2026-11-24T12:01:30Z", "1m 30s"),
            ("2026-11-25T11:59:59Z", "23h 59m 59s"),
            ("2027-11-24T12:00:00Z", "365d"),
        ] {
            assert_eq!(age(created, time(now)), shown);
        }
    }
}
