//! Timeouts and eviction, with paused time.

use super::*;

const LIMITS: Timeouts = Timeouts {
    header: Duration::from_secs(10),
    body: Duration::from_secs(20),
    idle: Duration::from_secs(300),
    drain: Duration::from_secs(25),
};

/// Seconds until the connection expires under [`LIMITS`]; None if it outlives an hour.
async fn seconds_to_expiry(activity: &Activity, is_memory_contended: bool) -> Option<u64> {
    let start = Instant::now();
    let expired = activity.expired(&LIMITS, || is_memory_contended);
    let expiry = tokio::time::timeout(Duration::from_secs(3600), expired).await;
    expiry.ok().map(|()| start.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_after_the_head_timeout() {
    let activity = Arc::<Activity>::default();
    let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
    assert!((10..=15).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_known_peer_may_stay_idle_between_requests() {
    let activity = Arc::<Activity>::default();
    drop(activity.begin_request(Version::HTTP_11, None));
    activity.recognize();
    let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
    assert!((300..=305).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_known_peer_that_starts_a_head_must_finish_it_in_time() {
    let activity = Arc::<Activity>::default();
    drop(activity.begin_request(Version::HTTP_11, None));
    activity.recognize();
    activity.received(1);
    let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
    assert!((10..=15).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_keeps_its_connection() {
    let activity = Arc::<Activity>::default();
    let _request = activity.begin_request(Version::HTTP_11, None);
    assert_eq!(seconds_to_expiry(&activity, false).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_unsent_response_closes_the_connection() {
    let activity = Arc::<Activity>::default();
    let request = activity.begin_request(Version::HTTP_11, None);
    let _unsent = request.track_unsent();
    let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
    assert!((20..=40).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_was_sent_is_not_held_against_the_peer() {
    let activity = Arc::<Activity>::default();
    let request = activity.begin_request(Version::HTTP_11, None);
    drop(request.track_unsent());
    assert_eq!(seconds_to_expiry(&activity, true).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_slow_stream_is_closed_only_while_memory_is_contended() {
    let activity = Arc::<Activity>::default();
    let mut request = activity.begin_request(Version::HTTP_11, None);
    request.respond(true);
    let _chunk = request.track_unsent();
    let idle = seconds_to_expiry(&activity, false).await.expect("expires");
    assert!((300..=305).contains(&idle), "only the idle limit: {idle}");
    let contended = seconds_to_expiry(&activity, true).await.expect("expires");
    assert!((20..=40).contains(&contended), "{contended}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_progresses_is_never_idle() {
    let activity = Arc::<Activity>::default();
    let mut request = activity.begin_request(Version::HTTP_11, None);
    request.respond(true);
    let sending = async {
        loop {
            sleep(Duration::from_secs(200)).await;
            drop(request.track_unsent());
        }
    };
    tokio::select! {
        expired = seconds_to_expiry(&activity, false) => assert_eq!(expired, None),
        () = sending => {}
    }
}

#[tokio::test(start_paused = true)]
async fn control_frames_of_http2_are_not_progress() {
    let activity = Arc::<Activity>::default();
    let mut request = activity.begin_request(Version::HTTP_2, None);
    request.respond(true);
    let pinging = async {
        loop {
            sleep(Duration::from_secs(100)).await;
            activity.received(1);
        }
    };
    tokio::select! {
        expired = seconds_to_expiry(&activity, false) => assert!(expired.is_some()),
        () = pinging => {}
    }
}

#[tokio::test(start_paused = true)]
async fn eviction_closes_at_once() {
    let activity = Arc::<Activity>::default();
    activity.evict();
    assert_eq!(seconds_to_expiry(&activity, false).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_known_peer_that_sends_nothing_has_the_time_of_a_head() {
    let activity = Arc::<Activity>::default();
    activity.recognize();
    let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
    assert!((10..=15).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_taken_closes_the_connection() {
    for is_known in [false, true] {
        let activity = Arc::<Activity>::default();
        if is_known {
            activity.recognize();
        }
        let mut request = activity.begin_request(Version::HTTP_2, None);
        request.respond(false);
        // More requests must not prolong it.
        let asking = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                drop(activity.begin_request(Version::HTTP_2, None));
            }
        };
        let seconds = tokio::select! {
            seconds = seconds_to_expiry(&activity, false) => seconds.expect("expires"),
            () = asking => unreachable!("it never ends"),
        };
        assert!((20..=40).contains(&seconds), "{seconds}");
    }
}

/// Seconds until only responses are left that the peer does not take; None if that takes more
/// than a minute.
async fn seconds_left_alone(activity: &Activity) -> Option<u64> {
    let start = Instant::now();
    let left_alone = activity.left_alone(Duration::from_secs(1));
    let end = tokio::time::timeout(Duration::from_secs(60), left_alone).await;
    end.ok().map(|()| start.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_taken_holds_up_no_drain() {
    let activity = Arc::<Activity>::default();
    activity.recognize();
    let mut request = activity.begin_request(Version::HTTP_2, None);
    assert_eq!(seconds_left_alone(&activity).await, None, "no response yet");
    request.respond(false);
    assert_eq!(seconds_left_alone(&activity).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_responses_that_are_taken_slowly_by_known_peers_only() {
    for (is_known, expected) in [(true, None), (false, Some(1))] {
        let activity = Arc::<Activity>::default();
        if is_known {
            activity.recognize();
        }
        let mut request = activity.begin_request(Version::HTTP_11, None);
        request.respond(false);
        let writing = async {
            loop {
                sleep(Duration::from_millis(500)).await;
                activity.wrote(1);
            }
        };
        tokio::select! {
            seconds = seconds_left_alone(&activity) => assert_eq!(seconds, expected),
            () = writing => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn frames_without_progress_close_an_http2_connection() {
    let activity = Arc::<Activity>::default();
    let request = activity.begin_request(Version::HTTP_2, None);
    activity.received(MAX_NOISE);
    activity.progressed();
    activity.received(MAX_NOISE);
    drop(request.track_unsent());
    activity.received(MAX_NOISE);
    assert_eq!(seconds_to_expiry(&activity, false).await, None);
    activity.received(1);
    assert_eq!(seconds_to_expiry(&activity, false).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_long_body_over_http_1_is_no_noise() {
    let activity = Arc::<Activity>::default();
    let _request = activity.begin_request(Version::HTTP_11, None);
    activity.received(2 * MAX_NOISE);
    assert_eq!(seconds_to_expiry(&activity, false).await, None);
}
