/// A W3C trace context. It is sent with a start, stored with the execution and passed to its workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The value of the header `traceparent`. Empty if there is none.
    pub traceparent: String,
    /// The value of the header `tracestate`. Empty if there is none.
    pub tracestate: String,
}

impl TraceContext {
    /// A context with the values of these two headers. Either may be empty.
    pub fn new(traceparent: impl Into<String>, tracestate: impl Into<String>) -> Self {
        Self { traceparent: traceparent.into(), tracestate: tracestate.into() }
    }
}
