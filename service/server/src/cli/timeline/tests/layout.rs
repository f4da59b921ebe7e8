use super::super::layout::lines;
use super::super::model::{Attempt, Fact, Moment, Section, What};
use super::*;

fn skipped(path: &str) -> v1::StepSkipped {
    v1::StepSkipped { step: step(path, false) }
}

fn moment<'a>(offset: Option<i128>, what: What<'a>) -> Moment<'a> {
    Moment { offset, attempt: None, took: None, what }
}

#[test]
fn columns_are_as_wide_as_their_widest_cell() {
    const SECOND: i128 = 1_000_000_000;
    let (short, long) = (skipped("a"), skipped("of_many_letters"));
    let attempt = Some(Attempt { number: 1, max: Some(12) });
    let facts = [
        Fact::Moment(Moment { attempt, ..moment(Some(0), What::StepSkipped(&short)) }),
        Fact::Moment(Moment {
            took: Some(90 * SECOND),
            ..moment(Some(999 * SECOND), What::StepSkipped(&long))
        }),
        Fact::Section(Section::Finally),
        Fact::Moment(moment(Some(1_000 * SECOND), What::Cancelling)),
        Fact::Section(Section::End),
        Fact::Moment(moment(None, What::CompensationComplete)),
    ];
    let text = "skipped: its condition is false";
    let expected = [
        format!("    +0.000s  ↷ a                1 of 12         {text}"),
        format!("  +999.000s  ↷ of_many_letters           1m30s  {text}"),
        String::new(),
        "  finally".to_owned(),
        "    +16m40s  ■ cancelling                       no further step begins".to_owned(),
        String::new(),
        "             ✓ compensation                     nothing is left to undo".to_owned(),
    ];
    assert_eq!(lines(&facts, Style::PLAIN), expected);
}

#[test]
fn long_lines_are_broken_at_the_width_of_the_terminal() {
    let started = v1::ExecutionStarted {
        workflow: "import-the-orders-of-all-shops-every-night-at-two".to_owned(),
        workflow_version: 12,
        ..Default::default()
    };
    let limit = Some(3 * 3_600 * 1_000_000_000);
    let facts = [Fact::Moment(moment(Some(0), What::Started { event: &started, limit }))];
    let whole = "  +0.000s  ● started      import-the-orders-of-all-shops-every-night-at-two v12, at most 3h00m";
    assert_eq!(lines(&facts, Style::PLAIN), [whole]);
    let broken = [
        "  +0.000s  ● started      import-the-orders-of-all-shops-every-night-at-two v12,",
        "                          at most 3h00m",
    ];
    assert_eq!(lines(&facts, Style::PLAIN.with_width(82)), broken);
    assert_eq!(lines(&facts, Style::PLAIN.with_width(30)), [whole], "no room for a column");
}
