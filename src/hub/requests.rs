//! What an operator may leave for a signer: orders that one could take, and requests in the journal
//! of a keyring's rollouts that it can read; no more than their part of them. Whether they count,
//! the signer decides.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    http::problem::Problem,
    rollout::{Request, SignedStart},
    wire::Code,
};

/// The longest order, in bytes.
pub(super) const MAX_ORDER: usize = 256 << 10;

/// How many requests of one operator wait in a journal.
const MOST_OF_ONE: usize = 8;
/// The longest request, in bytes.
const LONGEST: usize = 4 << 10;

/// A request that waits in a journal.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LeftRequest {
    request: Value,
    /// The operator who added it, unless a signer has.
    by: Option<String>,
}

/// Checks what can be checked without a signer's rules.
pub(super) fn check_order(start: &SignedStart, now: Timestamp) -> Result<(), Problem> {
    let invalid = |reason: String| Problem::new(Code::InvalidRequest, reason);
    start
        .check_form(now)
        .map_err(|refusal| invalid(refusal.to_string()))?;
    // What a signer is sent names every default.
    let whole = serde_json::to_vec(start).map_err(|error| invalid(error.to_string()))?;
    if whole.len() > MAX_ORDER {
        return Err(invalid(format!(
            "the order has more than {MAX_ORDER} bytes"
        )));
    }
    Ok(())
}

/// Returns the requests of a journal as it is after a replacement by `by`, a person or a signer.
/// `known` are those of the one before.
pub(super) fn left(known: &[LeftRequest], journal: &Value, by: Option<&str>) -> Vec<LeftRequest> {
    let mut known: Vec<&LeftRequest> = known.iter().collect();
    let requests = journal["requests"].as_array().into_iter().flatten();
    requests
        .map(|request| {
            let place = known.iter().position(|left| left.request == *request);
            match place {
                Some(place) => known.remove(place).clone(),
                None => LeftRequest {
                    request: request.clone(),
                    by: by.map(str::to_owned),
                },
            }
        })
        .collect()
}

/// Checks that an operator only adds requests to a journal: after those that there are, readable,
/// and not too many.
///
/// # Errors
/// [`Code::Forbidden`], [`Code::InvalidRequest`], [`Code::Overloaded`]
pub(super) fn check_additions(
    known: &[LeftRequest],
    mut before: Value,
    mut after: Value,
    by: &str,
) -> Result<(), Problem> {
    let take = |journal: &mut Value| match journal["requests"].take() {
        Value::Array(requests) => requests,
        _ => Vec::new(),
    };
    let (old, mut new) = (take(&mut before), take(&mut after));
    if before != after || !new.starts_with(&old) {
        return Err(Problem::new(
            Code::Forbidden,
            "only a signer may change a journal; operators add requests to it",
        ));
    }
    let added = new.split_off(old.len());
    for request in &added {
        check_request(request)?;
    }
    let own = |left: &&LeftRequest| left.by.as_deref() == Some(by);
    if known.iter().filter(own).count() + added.len() > MOST_OF_ONE {
        let detail = format!(
            "{MOST_OF_ONE} requests of this operator wait already for the signer; is one running?"
        );
        return Err(Problem::new(Code::Overloaded, detail).retry_after(10));
    }
    Ok(())
}

fn check_request(request: &Value) -> Result<(), Problem> {
    let invalid = |reason: String| {
        Problem::new(
            Code::InvalidRequest,
            format!("a request in the journal is none: {reason}"),
        )
    };
    if request.to_string().len() > LONGEST {
        return Err(invalid(format!("it has more than {LONGEST} bytes")));
    }
    serde_json::from_value::<Request>(request.clone())
        .map(drop)
        .map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        crypto::RolloutId,
        rollout::{Asked, Verb},
    };

    fn request(step: usize, by: &str) -> Value {
        let asked = Asked {
            rollout: RolloutId([1; 16]),
            step,
            verb: Verb::Pause,
            by: by.into(),
            signature: None,
        };
        serde_json::to_value(Request::Asked(asked)).expect("JSON")
    }

    fn journal(requests: &[Value]) -> Value {
        json!({"state": 1, "requests": requests})
    }

    fn check(known: &[LeftRequest], old: &[Value], new: &[Value], by: &str) -> Option<Code> {
        let checked = check_additions(known, journal(old), journal(new), by);
        checked.err().map(|problem| problem.code)
    }

    #[test]
    fn a_request_that_no_signer_can_read_is_refused() {
        let good = request(1, "ann");
        assert_eq!(check(&[], &[], std::slice::from_ref(&good), "ann"), None);
        let mut unknown = good.clone();
        unknown["asked"]["verb"] = json!("explode");
        let mut more = good.clone();
        more["asked"]["more"] = json!(1);
        for bad in [
            json!(null),
            json!({}),
            json!("pause"),
            json!({"asked": {}}),
            unknown,
            more,
            request(1, &"x".repeat(LONGEST)),
        ] {
            let code = check(&[], &[], &[good.clone(), bad.clone()], "ann");
            assert_eq!(code, Some(Code::InvalidRequest), "{bad}");
        }
    }

    #[test]
    fn one_operator_cannot_use_up_the_places_of_others() {
        let mut requests = Vec::new();
        let mut known = Vec::new();
        for step in 0..MOST_OF_ONE {
            let old = requests.clone();
            requests.push(request(step, "eve"));
            assert_eq!(check(&known, &old, &requests, "eve"), None);
            known = left(&known, &journal(&requests), Some("eve"));
        }
        let add = |known: &[LeftRequest], requests: &[Value], by| {
            let more = [requests, &[request(99, by)]].concat();
            check(known, requests, &more, by)
        };
        assert_eq!(add(&known, &requests, "eve"), Some(Code::Overloaded));
        assert_eq!(add(&known, &requests, "ann"), None);

        // The signer takes one, and its own writes change no owner.
        requests.remove(0);
        known = left(&known, &journal(&requests), None);
        assert_eq!(add(&known, &requests, "eve"), None);
        requests.push(request(7, "eve"));
        known = left(&known, &journal(&requests), Some("eve"));
        assert_eq!(add(&known, &requests, "eve"), Some(Code::Overloaded));
    }

    #[test]
    fn nothing_but_requests_is_added() {
        let [one, two] = [request(1, "ann"), request(2, "ann")];
        let before = journal(std::slice::from_ref(&one));
        for forged in [
            json!({"state": 2, "requests": [one, two]}),
            json!({"state": 1, "requests": [two]}),
            json!({"state": 1}),
            json!({"state": 1, "requests": [one], "runner": null}),
        ] {
            let checked = check_additions(&[], before.clone(), forged.clone(), "ann");
            let code = checked.err().map(|problem| problem.code);
            assert_eq!(code, Some(Code::Forbidden), "{forged}");
        }
    }
}
