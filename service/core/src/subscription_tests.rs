use uuid::Uuid;

use super::*;

const LEASE: Duration = Duration::from_secs(15);
const STREAM: Reader = Reader::Stream { epoch: 1 };

fn entries(entries: usize) -> FetchLimit {
    FetchLimit { entries, bytes: usize::MAX }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn candidate(event: &str, execution: u128) -> Candidate {
    Candidate {
        event: event.into(),
        execution: Some(ExecutionId(Uuid::from_u128(execution))),
        position: Position::default(),
        bytes: 10,
        gap: None,
    }
}

/// A subscription with these events admitted at second 0. The first letter of an event names its execution.
fn with(events: &[&str]) -> Subscription {
    let filter = Filter { namespace: "*".into(), ..Filter::default() };
    let mut subscription = Subscription::new(filter, "now".into(), "c0".into());
    let candidates = events.iter().map(|event| candidate(event, event.as_bytes()[0].into()));
    subscription.admit(candidates.collect(), "c1".into(), at(0));
    subscription
}

fn fetch(subscription: &mut Subscription, seconds: i64) -> Vec<(String, u32)> {
    let deliveries = subscription.fetch(at(seconds), entries(100), STREAM);
    deliveries.into_iter().map(|delivery| (delivery.event, delivery.number)).collect()
}

fn events(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(event, number)| ((*event).to_owned(), *number)).collect()
}

#[test]
fn event_is_delivered_once_and_redelivered_only_after_its_deadline() {
    let mut subscription = with(&["a1", "b1"]);
    assert_eq!(fetch(&mut subscription, 0), events(&[("a1", 1), ("b1", 1)]));
    assert_eq!(fetch(&mut subscription, 29), []);
    assert_eq!(subscription.ack("b1", 1), Acked::Accepted);
    assert_eq!(subscription.next_due(), Some(at(30)));
    assert_eq!(fetch(&mut subscription, 30), events(&[("a1", 2)]));
}

#[test]
fn ack_is_accepted_for_the_latest_delivery_only_and_may_be_repeated() {
    let mut subscription = with(&["a1"]);
    fetch(&mut subscription, 0);
    fetch(&mut subscription, 30);
    assert_eq!(subscription.ack("a1", 1), Acked::Expired);
    assert_eq!(subscription.ack("a1", 2), Acked::Accepted);
    assert_eq!(subscription.ack("a1", 2), Acked::Accepted);
    assert_eq!(subscription.nack("a1", 2, at(31), Duration::ZERO), Acked::Expired);
    assert_eq!(fetch(&mut subscription, 100), []);
}

#[test]
fn ack_is_accepted_until_the_event_is_redelivered() {
    let mut subscription = with(&["a1"]);
    fetch(&mut subscription, 0);
    assert_eq!(subscription.ack("a1", 1), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 40), []);
}

#[test]
fn nacked_event_is_redelivered_after_its_delay_and_delays_only_its_execution() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    fetch(&mut subscription, 0);
    let delay = Duration::from_secs(10);
    assert_eq!(subscription.nack("a1", 1, at(1), delay), Acked::Accepted);
    assert_eq!(subscription.nack("a2", 1, at(1), Duration::ZERO), Acked::Accepted);
    assert_eq!(subscription.nack("b1", 1, at(1), Duration::ZERO), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 2), events(&[("b1", 2)]));
    // A later event of the same execution waits as well.
    subscription.admit(vec![candidate("a3", b'a'.into())], "c2".into(), at(3));
    assert_eq!(fetch(&mut subscription, 4), []);
    assert_eq!(subscription.next_due(), Some(at(11)), "events waiting for a1 are not due");
    assert_eq!(fetch(&mut subscription, 11), events(&[("a1", 2)]));
    assert_eq!(subscription.ack("a1", 2), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 12), events(&[("a2", 2)]));
    assert_eq!(subscription.ack("a2", 2), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 13), events(&[("a3", 1)]));
}

#[test]
fn fetch_limit_never_reorders_events_of_one_execution() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    assert_eq!(subscription.fetch(at(0), entries(1), STREAM)[0].event, "a1");
    assert_eq!(fetch(&mut subscription, 1), events(&[("a2", 1), ("b1", 1)]));
}

#[test]
fn concurrent_readers_never_hold_two_events_of_one_execution() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    let first = subscription.fetch(at(0), entries(1), Reader::Pull);
    assert_eq!(first[0].event, "a1");
    let second = subscription.fetch(at(0), entries(9), Reader::Pull);
    let second: Vec<_> = second.into_iter().map(|delivery| delivery.event).collect();
    assert_eq!(second, ["b1"]);
    subscription.ack("a1", 1);
    assert_eq!(subscription.fetch(at(0), entries(9), Reader::Pull)[0].event, "a2");
}

#[test]
fn window_limits_the_outstanding_events() {
    let mut subscription = with(&["a1", "b1"]);
    subscription.window = 3;
    assert_eq!(subscription.room(), 1);
    subscription.window = 1;
    assert_eq!(subscription.room(), 0);
    fetch(&mut subscription, 0);
    subscription.ack("a1", 1);
    subscription.ack("b1", 1);
    assert_eq!(subscription.room(), 1);
}

#[test]
fn watermark_advances_once_everything_is_acknowledged() {
    let mut subscription = with(&["a1"]);
    fetch(&mut subscription, 0);
    assert_eq!(subscription.watermark, "c0");
    subscription.ack("a1", 1);
    subscription.settle();
    assert_eq!(subscription.watermark, "c1");
    subscription.admit(Vec::new(), "c2".into(), at(1));
    assert_eq!(subscription.watermark, "c2");
}

#[test]
fn one_consumer_reads_at_a_time() {
    let mut subscription = with(&[]);
    let first = subscription.open("one", at(0), LEASE).expect("no consumer is reading");
    assert_eq!(subscription.open("two", at(1), LEASE), Err(InUse));
    assert_eq!(subscription.open("", at(1), LEASE), Err(InUse));
    assert_eq!(subscription.renew(first, at(10), LEASE), Ok(()));
    assert_eq!(subscription.open("two", at(20), LEASE), Err(InUse));
    let second = subscription.open("two", at(25), LEASE).expect("the lease has ended");
    assert_eq!(subscription.renew(first, at(25), LEASE), Err(Taken));
    // A consumer that has been replaced and leaves late does not end the reading of its successor.
    subscription.close(first);
    assert_eq!(subscription.open("one", at(26), LEASE), Err(InUse));
    subscription.close(second);
    assert!(subscription.open("one", at(26), LEASE).is_ok());
}

#[test]
fn reconnecting_consumer_takes_over_from_its_earlier_stream() {
    for name in ["one", ""] {
        let mut subscription = with(&[]);
        let first = subscription.open(name, at(0), LEASE).expect("no consumer is reading");
        assert!(subscription.open(name, at(1), LEASE).is_ok());
        assert_eq!(subscription.renew(first, at(2), LEASE), Err(Taken));
        assert_eq!(subscription.open("two", at(2), LEASE), Err(InUse));
    }
}

#[test]
fn events_held_by_a_stream_are_due_at_once_for_the_next_one() {
    let mut subscription = with(&["a1", "a2", "b1", "b2", "c1", "d1"]);
    let first = subscription.open("one", at(0), LEASE).expect("no consumer is reading");
    let pulled = subscription.fetch(at(0), entries(1), Reader::Pull);
    assert_eq!(pulled[0].event, "a1");
    let reader = Reader::Stream { epoch: first };
    let streamed = subscription.fetch(at(1), entries(100), reader);
    let streamed: Vec<_> = streamed.iter().map(|delivery| delivery.event.as_str()).collect();
    assert_eq!(streamed, ["b1", "b2", "c1", "d1"], "a2 waits: a1 is held by the pull");
    assert_eq!(subscription.next_due(), Some(at(30)));
    subscription.nack("c1", 1, at(1), Duration::from_secs(10));
    subscription.ack("d1", 1);

    let second = subscription.open("one", at(2), LEASE).expect("the consumer reconnects");
    let reader = Reader::Stream { epoch: second };
    assert_eq!(subscription.next_due(), Some(at(2)));
    let again = subscription.fetch(at(2), entries(100), reader);
    let again: Vec<_> =
        again.iter().map(|delivery| (delivery.event.as_str(), delivery.number)).collect();
    // The pulled event keeps its deadline, and the event that was given back keeps its delay.
    assert_eq!(again, [("b1", 2)]);
    subscription.ack("b1", 2);
    assert_eq!(fetch(&mut subscription, 3), events(&[("b2", 2)]));
    subscription.ack("b2", 2);
    assert_eq!(fetch(&mut subscription, 11), events(&[("c1", 2)]));
    assert_eq!(fetch(&mut subscription, 30), events(&[("a1", 2)]));
    subscription.ack("a1", 2);
    assert_eq!(fetch(&mut subscription, 31), events(&[("a2", 1)]));
}

#[test]
fn ack_token_outlives_its_stream_until_the_event_is_redelivered() {
    let mut subscription = with(&["a1", "b1"]);
    subscription.open("one", at(0), LEASE).expect("no consumer is reading");
    fetch(&mut subscription, 0);
    subscription.open("one", at(1), LEASE).expect("the consumer reconnects");
    assert_eq!(
        subscription.ack("a1", 1),
        Acked::Accepted,
        "it was processed, only the ack is late"
    );
    assert_eq!(fetch(&mut subscription, 1), events(&[("b1", 2)]));
    assert_eq!(subscription.ack("b1", 1), Acked::Expired);
    assert_eq!(subscription.ack("b1", 2), Acked::Accepted);
}

#[test]
fn events_of_one_execution_keep_their_order_when_another_stream_takes_over() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    let first = subscription.open("", at(0), LEASE).expect("no consumer is reading");
    subscription.fetch(at(0), entries(2), Reader::Stream { epoch: first });
    subscription.open("", at(1), LEASE).expect("the consumer reconnects");
    // a2 is delivered again once a1 has been acknowledged.
    assert_eq!(fetch(&mut subscription, 1), events(&[("a1", 2), ("b1", 1)]));
    subscription.ack("a1", 2);
    assert_eq!(fetch(&mut subscription, 2), events(&[("a2", 2)]));
}

#[test]
fn fetch_respects_its_byte_limit_but_returns_at_least_one_entry() {
    let mut subscription = with(&["a1", "b1", "c1"]);
    let mut fetch = |bytes| {
        let limit = FetchLimit { entries: 100, bytes };
        subscription.fetch(at(0), limit, STREAM).len()
    };
    assert_eq!(fetch(9), 1, "an entry has 10 bytes");
    assert_eq!(fetch(20), 2);
    assert_eq!(fetch(20), 0);
    let mut subscription = with(&["a1", "b1", "c1"]);
    assert_eq!(subscription.fetch(at(0), FetchLimit { entries: 9, bytes: 19 }, STREAM).len(), 1);
}

#[test]
fn filter_requires_all_its_parts_to_match_except_for_feed_gaps() {
    let filter = Filter {
        namespace: "shop.*".into(),
        workflows: vec!["order".into()],
        kinds: vec![FailureKind::StepFailed],
        error_types: vec!["payment".into()],
    };
    let takes =
        |namespace, workflow, kind, error| filter.takes(namespace, workflow, Some(kind), error);
    assert!(takes("shop.eu", "order", FailureKind::StepFailed, "payment.declined"));
    assert!(!takes("shop", "order", FailureKind::StepFailed, "payment.declined"));
    assert!(!takes("shop.eu", "refund", FailureKind::StepFailed, "payment.declined"));
    assert!(!takes("shop.eu", "order", FailureKind::StepIgnored, "payment.declined"));
    assert!(!takes("shop.eu", "order", FailureKind::StepFailed, "stock.gone"));
    assert!(!takes("shop.eu", "order", FailureKind::StepFailed, ""));
    assert!(takes("other", "", FailureKind::FeedGap, ""));

    let unknown = |filter: &Filter| filter.takes("shop.eu", "order", None, "payment.declined");
    assert!(!unknown(&filter), "an unknown kind is none of the listed kinds");
    assert!(unknown(&Filter { kinds: vec![], ..filter }), "without a list, any kind matches");
}
