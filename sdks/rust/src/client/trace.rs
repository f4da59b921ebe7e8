/// A W3C trace context: goes with a start, is kept with the execution and handed to its workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The header `traceparent`. Empty: none.
    pub traceparent: String,
    /// The header `tracestate`. Empty: none.
    pub tracestate: String,
}

impl TraceContext {
    /// A context of these two headers; either may be empty.
    pub fn new(traceparent: impl Into<String>, tracestate: impl Into<String>) -> Self {
        Self { traceparent: traceparent.into(), tracestate: tracestate.into() }
    }
}
