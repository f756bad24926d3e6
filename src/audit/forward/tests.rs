use std::{collections::HashSet, future::pending};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::{Instant, advance},
};

use super::{
    deliver::{Deliver, Undelivered},
    queue::{BATCH_BYTES, BATCH_LINES, FIRST_PAUSE, LONGEST_PAUSE, MAX_BYTES, MAX_LINES},
    *,
};

fn line(seq: usize) -> Bytes {
    format!(
        "{{\"seq\":{seq},\"at\":\"2026-11-24T12:00:00Z\",\"by\":{{\"host\":\"h\",\"pid\":7}},\
         \"event\":\"keyring.rotate\"}}"
    )
    .into()
}

fn lines(seqs: impl IntoIterator<Item = usize>) -> Vec<Bytes> {
    seqs.into_iter().map(line).collect()
}

/// What a collector does with the next batch.
#[derive(Clone)]
enum Habit {
    Takes,
    Fails,
    Hangs,
    /// It refuses batches of more lines than this, and these lines.
    Refuses(usize, HashSet<Bytes>),
}

/// A collector that does as it is told.
#[derive(Clone)]
struct Fake(Arc<Mutex<FakeState>>);

struct FakeState {
    habit: Habit,
    taken: Vec<Bytes>,
    /// When a batch was offered, and how long it was.
    attempts: Vec<(Instant, usize)>,
    is_closed: bool,
}

impl Fake {
    fn new(habit: Habit) -> Self {
        Self(Arc::new(Mutex::new(FakeState {
            habit,
            taken: Vec::new(),
            attempts: Vec::new(),
            is_closed: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().expect("no test panics with it")
    }
}

impl Deliver for Fake {
    async fn deliver(&mut self, lines: &[Bytes]) -> Result<(), Undelivered> {
        let habit = {
            let mut state = self.state();
            state.attempts.push((Instant::now(), lines.len()));
            state.habit.clone()
        };
        match habit {
            Habit::Takes => {}
            Habit::Fails => return Err(Undelivered::Failed("it is down".into())),
            Habit::Hangs => pending().await,
            Habit::Refuses(most, refused) => {
                if lines.len() > most || lines.iter().any(|line| refused.contains(line)) {
                    return Err(Undelivered::Refused("413".into()));
                }
            }
        }
        self.state().taken.extend_from_slice(lines);
        Ok(())
    }

    async fn lost(&mut self) -> String {
        pending().await
    }

    async fn close(&mut self) {
        self.state().is_closed = true;
    }
}

fn queue(collector: &Fake) -> Running {
    let to = "syslog+tcp://fake:1";
    let settings = settings(to);
    let queue = Queue::new(to.into(), Clock::system(), &Registry::default());
    let queue = Arc::new(queue);
    let task = tokio::spawn(Arc::clone(&queue).deliver_all(collector.clone()));
    Running {
        settings,
        queue,
        task: AbortOnDropHandle::new(task),
    }
}

fn settings(to: &str) -> AuditForward {
    AuditForward {
        to: to.parse().expect("a collector"),
        ca_file: None,
        certificate: None,
        authorization_file: None,
    }
}

/// Lets paused time pass until nothing waits.
async fn emptied(running: &Running) {
    while running.queue.health().waiting > 0 {
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lines_are_delivered_in_order_and_in_batches_of_limited_length() {
    let collector = Fake::new(Habit::Takes);
    let running = queue(&collector);
    let mut all = lines(0..3 * BATCH_LINES);
    // One alone exceeds the limit for a batch.
    let long = [BATCH_BYTES / 2, BATCH_BYTES / 2 + 1, BATCH_BYTES + 1, 1];
    all.extend(long.map(|length| Bytes::from(vec![b'x'; length])));
    running.queue.offer(&all);
    emptied(&running).await;
    let state = collector.state();
    assert_eq!(state.taken, all);
    let lengths: Vec<usize> = state.attempts.iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths, [BATCH_LINES, BATCH_LINES, BATCH_LINES, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_down_is_tried_ever_more_rarely_and_loses_nothing() {
    let collector = Fake::new(Habit::Fails);
    let running = queue(&collector);
    running.queue.offer(&lines(0..3));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let health = running.queue.health();
    let (_, reason) = health.failure.expect("it fails");
    assert_eq!(
        (reason.as_str(), health.waiting, health.lost),
        ("it is down", 3, 0)
    );
    let attempts = std::mem::take(&mut collector.state().attempts);
    let mut pause = FIRST_PAUSE;
    for pair in attempts.windows(2) {
        let waited = pair[1].0 - pair[0].0;
        let range = pause.mul_f64(0.74)..pause.mul_f64(1.26);
        assert!(range.contains(&waited), "{waited:?} for {pause:?}");
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    assert_eq!(pause, LONGEST_PAUSE);
    collector.state().habit = Habit::Takes;
    running.queue.offer(&lines(3..4));
    emptied(&running).await;
    assert_eq!(collector.state().taken, lines(0..4));
    assert!(running.queue.health().failure.is_none());
    // The pauses begin again.
    collector.state().attempts.clear();
    collector.state().habit = Habit::Fails;
    running.queue.offer(&lines(4..5));
    tokio::time::sleep(2 * FIRST_PAUSE).await;
    assert!(collector.state().attempts.len() >= 2);
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_is_lost_and_what_waits_keeps_its_order() {
    let collector = Fake::new(Habit::Hangs);
    let running = queue(&collector);
    // A collector that never answers holds up no caller.
    running.queue.offer(&lines(0..MAX_LINES + 10));
    let health = running.queue.health();
    assert_eq!((health.waiting, health.lost), (MAX_LINES, 10));
    // Another one isn't delayed by it.
    let other = Fake::new(Habit::Takes);
    let beside = queue(&other);
    beside.queue.offer(&lines(0..MAX_LINES));
    emptied(&beside).await;
    assert_eq!(other.state().taken.len(), MAX_LINES);

    let collector = Fake::new(Habit::Fails);
    let running = queue(&collector);
    running.queue.offer(&lines(0..MAX_LINES + 10));
    collector.state().habit = Habit::Takes;
    emptied(&running).await;
    running.queue.offer(&lines([MAX_LINES + 10]));
    emptied(&running).await;
    let arrived = lines((0..MAX_LINES).chain([MAX_LINES + 10]));
    assert_eq!(
        collector.state().taken,
        arrived,
        "the gap is where the loss was"
    );
    assert_eq!(running.queue.health().lost, 10);
}

#[tokio::test(start_paused = true)]
async fn waiting_lines_take_limited_memory() {
    let running = queue(&Fake::new(Habit::Hangs));
    let long = vec![Bytes::from(vec![b'x'; 64 << 10]); 2 * MAX_BYTES / (64 << 10)];
    running.queue.offer(&long);
    let health = running.queue.health();
    assert_eq!(health.waiting, MAX_BYTES / (64 << 10));
    assert_eq!(health.waiting + health.lost as usize, long.len());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_refused_costs_only_itself() {
    let refused = HashSet::from([line(0), line(100), line(255)]);
    let collector = Fake::new(Habit::Refuses(50, refused.clone()));
    let running = queue(&collector);
    running.queue.offer(&lines(0..300));
    emptied(&running).await;
    let expected = lines((0..300).filter(|seq| !refused.contains(&line(*seq))));
    assert_eq!(collector.state().taken, expected);
    let health = running.queue.health();
    assert_eq!((health.lost, health.failure), (3, None));

    let all = Fake::new(Habit::Refuses(0, HashSet::new()));
    let running = queue(&all);
    running.queue.offer(&lines(0..10));
    emptied(&running).await;
    let health = running.queue.health();
    assert_eq!(health.lost, 10);
    let (_, reason) = health.failure.expect("it takes none");
    assert_eq!(reason, "it refuses a record: 413");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_what_waits_is_tried_at_once_and_for_a_limited_time() {
    let collector = Fake::new(Habit::Fails);
    let running = queue(&collector);
    running.queue.offer(&lines(0..2));
    // Its pauses are long by now.
    tokio::time::sleep(Duration::from_secs(300)).await;
    collector.state().habit = Habit::Takes;
    let began = Instant::now();
    running.finish(Duration::from_secs(2)).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(collector.state().taken, lines(0..2));
    assert!(collector.state().is_closed);

    for habit in [Habit::Fails, Habit::Hangs] {
        let collector = Fake::new(habit);
        let running = queue(&collector);
        let queue = Arc::clone(&running.queue);
        queue.offer(&lines(0..2));
        let began = Instant::now();
        running.finish(Duration::from_secs(2)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        assert_eq!(queue.health().waiting, 2);
        let attempts = collector.state().attempts.len();
        advance(Duration::from_secs(60)).await;
        assert_eq!(collector.state().attempts.len(), attempts, "it has ended");
    }
}

fn forwards(to: &[&str]) -> Forwards {
    let forwards = Forwards::new(Clock::system(), Arc::default());
    forwards.install(&to.iter().map(|to| settings(to)).collect::<Vec<_>>());
    forwards
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = format!(
        "syslog+tcp://{}",
        listener.local_addr().expect("an address")
    );
    (listener, to)
}

/// Reads counted messages, and returns the number of each record.
async fn numbers(stream: &mut TcpStream, count: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        let mut length = String::new();
        loop {
            match stream.read_u8().await.expect("a length") {
                b' ' => break,
                digit => length.push(char::from(digit)),
            }
        }
        let mut message = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut message).await.expect("a message");
        let text = String::from_utf8(message).expect("UTF-8");
        let record = &text[text.find('{').expect("JSON")..];
        let record: serde_json::Value = serde_json::from_str(record).expect("JSON");
        numbers.push(record["seq"].as_u64().expect("a number") as usize);
    }
    numbers
}

fn written(seqs: impl IntoIterator<Item = usize>) -> Bytes {
    let mut bytes = Vec::new();
    for line in lines(seqs) {
        bytes.extend_from_slice(&line);
        bytes.push(b'\n');
    }
    bytes.into()
}

#[tokio::test]
async fn syslog_gets_every_record_and_the_end_waits_until_all_is_read() {
    let (listener, to) = listener().await;
    let forwards = forwards(&[&to]);
    // A line that a crash left unfinished is ended first.
    forwards.offer(&[b"\n", &written([1, 2])[..]].concat().into());
    let (mut stream, _) = listener.accept().await.expect("a connection");
    assert_eq!(numbers(&mut stream, 2).await, [1, 2]);
    forwards.offer(&written([3]));
    let collector = async {
        assert_eq!(numbers(&mut stream, 1).await, [3]);
        assert_eq!(stream.read(&mut [0]).await.expect("an end"), 0);
        drop(stream);
    };
    let patience = Duration::from_secs(600);
    tokio::join!(forwards.finish(patience), collector);
}

#[tokio::test]
async fn what_a_broken_connection_may_have_lost_is_sent_again() {
    let (listener, to) = listener().await;
    let forwards = forwards(&[&to]);
    forwards.offer(&written([1]));
    let (mut stream, _) = listener.accept().await.expect("a connection");
    assert_eq!(numbers(&mut stream, 1).await, [1]);
    forwards.offer(&written([2]));
    // It arrives, and is never read. Nothing more is sent.
    assert!(stream.peek(&mut [0]).await.expect("a record") > 0);
    drop(stream);
    let (mut stream, _) = listener.accept().await.expect("another connection");
    assert_eq!(numbers(&mut stream, 2).await, [1, 2]);
    forwards.offer(&written([3]));
    assert_eq!(numbers(&mut stream, 1).await, [3]);
}

#[tokio::test]
async fn a_collector_that_closes_every_connection_gets_all_in_the_end() {
    let (listener, to) = listener().await;
    let forwards = forwards(&[&to]);
    forwards.offer(&written([1]));
    for seq in 2..5 {
        let (stream, _) = listener.accept().await.expect("a connection");
        drop(stream);
        forwards.offer(&written([seq]));
    }
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut seen = HashSet::new();
    while seen != HashSet::from([1, 2, 3, 4]) {
        seen.extend(numbers(&mut stream, 1).await);
    }
}

#[tokio::test]
async fn another_config_keeps_the_connections_of_the_same_collectors() {
    let (first, one) = listener().await;
    let (second, other) = listener().await;
    let forwards = forwards(&[&one]);
    forwards.offer(&written([1]));
    let (mut kept, _) = first.accept().await.expect("a connection");
    assert_eq!(numbers(&mut kept, 1).await, [1]);
    forwards.install(&[settings(&other), settings(&one)]);
    forwards.offer(&written([2]));
    let (mut added, _) = second.accept().await.expect("a connection");
    assert_eq!(numbers(&mut added, 1).await, [2]);
    assert_eq!(numbers(&mut kept, 1).await, [2]);
    forwards.install(&[settings(&other)]);
    forwards.offer(&written([3]));
    assert_eq!(numbers(&mut added, 1).await, [3]);
    assert_eq!(kept.read(&mut [0]).await.expect("an end"), 0);
    let health = forwards.health();
    assert_eq!((health.len(), health[0].to.as_str()), (1, other.as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_was_replaced_no_longer_sets_the_gauge() {
    let (listener, to) = listener().await;
    drop(listener);
    let registry = Arc::new(Registry::default());
    let forwards = Forwards::new(Clock::system(), Arc::clone(&registry));
    let is_failing = || {
        let gauge = format!("sidekey_audit_forward_failing{{to=\"{to}\"}} 1");
        registry.render().contains(&gauge)
    };
    forwards.install(&[settings(&to)]);
    forwards.offer(&written([1]));
    tokio::time::sleep(FIRST_PAUSE).await;
    assert!(is_failing());
    // The same collector with other files gets nothing yet, while the former one fails on.
    let ca_file = Some("ca.pem".into());
    forwards.install(&[AuditForward {
        ca_file,
        ..settings(&to)
    }]);
    tokio::time::sleep(4 * FIRST_PAUSE).await;
    assert!(!is_failing());
    forwards.offer(&written([2]));
    tokio::time::sleep(FIRST_PAUSE).await;
    // The end of the former one says nothing about its successor.
    for _ in 0..80 {
        assert!(is_failing());
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}
