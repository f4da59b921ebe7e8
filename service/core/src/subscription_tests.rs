use uuid::Uuid;

use super::*;

const LEASE: Duration = Duration::from_secs(15);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn candidate(event: &str, execution: u128) -> Candidate {
    Candidate {
        event: event.into(),
        execution: Some(ExecutionId(Uuid::from_u128(execution))),
        position: Position::default(),
        gap: None,
    }
}

/// With these events admitted at second 0: the first letter names the execution.
fn with(events: &[&str]) -> Subscription {
    let filter = Filter { namespace: "*".into(), ..Filter::default() };
    let mut subscription = Subscription::new(filter, "now".into(), "c0".into());
    let candidates = events.iter().map(|event| candidate(event, event.as_bytes()[0].into()));
    subscription.admit(candidates.collect(), "c1".into(), at(0));
    subscription
}

fn fetch(subscription: &mut Subscription, seconds: i64) -> Vec<(String, u32)> {
    let deliveries = subscription.fetch(at(seconds), 100, false);
    deliveries.into_iter().map(|delivery| (delivery.event, delivery.number)).collect()
}

fn events(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(event, number)| ((*event).to_owned(), *number)).collect()
}

#[test]
fn each_event_comes_once_and_again_after_its_deadline() {
    let mut subscription = with(&["a1", "b1"]);
    assert_eq!(fetch(&mut subscription, 0), events(&[("a1", 1), ("b1", 1)]));
    assert_eq!(fetch(&mut subscription, 29), []);
    assert_eq!(subscription.ack("b1", 1), Acked::Accepted);
    assert_eq!(subscription.next_due(), Some(at(30)));
    assert_eq!(fetch(&mut subscription, 30), events(&[("a1", 2)]));
}

#[test]
fn an_ack_counts_for_the_last_delivery_only_and_twice() {
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
fn an_ack_after_the_deadline_counts_until_the_next_delivery() {
    let mut subscription = with(&["a1"]);
    fetch(&mut subscription, 0);
    assert_eq!(subscription.ack("a1", 1), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 40), []);
}

#[test]
fn what_is_given_back_comes_after_its_delay_and_holds_up_its_execution_alone() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    fetch(&mut subscription, 0);
    let delay = Duration::from_secs(10);
    assert_eq!(subscription.nack("a1", 1, at(1), delay), Acked::Accepted);
    assert_eq!(subscription.nack("a2", 1, at(1), Duration::ZERO), Acked::Accepted);
    assert_eq!(subscription.nack("b1", 1, at(1), Duration::ZERO), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 2), events(&[("b1", 2)]));
    // A later event of the execution waits as well.
    subscription.admit(vec![candidate("a3", b'a'.into())], "c2".into(), at(3));
    assert_eq!(fetch(&mut subscription, 4), []);
    assert_eq!(subscription.next_due(), Some(at(11)), "what waits behind a1 is not due");
    assert_eq!(fetch(&mut subscription, 11), events(&[("a1", 2)]));
    assert_eq!(subscription.ack("a1", 2), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 12), events(&[("a2", 2)]));
    assert_eq!(subscription.ack("a2", 2), Acked::Accepted);
    assert_eq!(fetch(&mut subscription, 13), events(&[("a3", 1)]));
}

#[test]
fn a_limit_never_lets_a_later_event_of_an_execution_overtake() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    assert_eq!(subscription.fetch(at(0), 1, false)[0].event, "a1");
    assert_eq!(fetch(&mut subscription, 1), events(&[("a2", 1), ("b1", 1)]));
}

#[test]
fn readers_beside_each_other_never_hold_two_events_of_one_execution() {
    let mut subscription = with(&["a1", "a2", "b1"]);
    let first = subscription.fetch(at(0), 1, true);
    assert_eq!(first[0].event, "a1");
    let second: Vec<_> = subscription.fetch(at(0), 9, true).into_iter().map(|d| d.event).collect();
    assert_eq!(second, ["b1"]);
    subscription.ack("a1", 1);
    assert_eq!(subscription.fetch(at(0), 9, true)[0].event, "a2");
}

#[test]
fn the_window_is_what_is_outstanding() {
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
fn the_watermark_follows_when_everything_is_acknowledged() {
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
    let first = subscription.open("one", at(0), LEASE).expect("nobody reads");
    assert_eq!(subscription.open("two", at(1), LEASE), Err(InUse));
    assert_eq!(subscription.open("", at(1), LEASE), Err(InUse));
    assert_eq!(subscription.renew(first, at(10), LEASE), Ok(()));
    assert_eq!(subscription.open("two", at(20), LEASE), Err(InUse));
    let second = subscription.open("two", at(25), LEASE).expect("the lease has ended");
    assert_eq!(subscription.renew(first, at(25), LEASE), Err(InUse));
    // The one that left late takes nothing away.
    subscription.close(first);
    assert_eq!(subscription.open("one", at(26), LEASE), Err(InUse));
    subscription.close(second);
    assert!(subscription.open("one", at(26), LEASE).is_ok());
}

#[test]
fn a_consumer_that_comes_back_under_its_name_takes_over() {
    let mut subscription = with(&[]);
    let first = subscription.open("one", at(0), LEASE).expect("nobody reads");
    assert!(subscription.open("one", at(1), LEASE).is_ok());
    assert_eq!(subscription.renew(first, at(2), LEASE), Err(InUse));
}

#[test]
fn a_filter_takes_what_all_its_parts_take() {
    let filter = Filter {
        namespace: "shop.*".into(),
        workflows: vec!["order".into()],
        kinds: vec![FailureKind::StepFailed],
        error_types: vec!["payment".into()],
    };
    let takes = |namespace, workflow, kind, error| filter.takes(namespace, workflow, kind, error);
    assert!(takes("shop.eu", "order", FailureKind::StepFailed, "payment.declined"));
    assert!(!takes("shop", "order", FailureKind::StepFailed, "payment.declined"));
    assert!(!takes("shop.eu", "refund", FailureKind::StepFailed, "payment.declined"));
    assert!(!takes("shop.eu", "order", FailureKind::StepIgnored, "payment.declined"));
    assert!(!takes("shop.eu", "order", FailureKind::StepFailed, "stock.gone"));
    assert!(!takes("shop.eu", "order", FailureKind::StepFailed, ""));
    assert!(takes("other", "", FailureKind::FeedGap, ""));
}
