//! The messages that a worker sends on its stream. A result is encoded once, when its handler ends, and is
//! kept encoded until the service acknowledges it. So sending it, even repeatedly, copies no payload, and
//! the size of a batch is known.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::message;
use recoup_proto::v1::{self, StreamTasksRequest, StreamTasksResponse, task_result};
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::handler::{Outcome, too_large};
use crate::payload::check_size;

/// The tag of `StreamTasksRequest.results`.
const RESULTS_TAG: u32 = 3;

/// One message: `head` has no results, and the results follow in encoded form.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) head: StreamTasksRequest,
    pub(super) results: Vec<Bytes>,
}

/// Converts the outcome of an attempt to a message of the protocol. An output over the limit becomes an
/// error here, because the service would refuse it.
pub(super) fn proto_result(outcome: Outcome) -> task_result::Result {
    let outcome = outcome.and_then(|output| match check_size(&output) {
        Ok(()) => Ok(output),
        Err(error) => Err(too_large(&error)),
    });
    match outcome {
        Ok(output) => task_result::Result::Completed(output),
        Err(error) => task_result::Result::Failed(error.into_proto()),
    }
}

/// Encodes a result including its tag, so that it can follow the other fields of a message.
pub(super) fn result(token: Bytes, result: task_result::Result) -> Bytes {
    let result = v1::TaskResult { task_token: token, result: Some(result) };
    let mut buffer = BytesMut::with_capacity(message::encoded_len(RESULTS_TAG, &result));
    message::encode(RESULTS_TAG, &result, &mut buffer);
    buffer.freeze()
}

/// Decodes a result that [`result`] encoded.
pub(super) fn decoded(encoded: &Bytes) -> Option<task_result::Result> {
    let message = StreamTasksRequest::decode(encoded.clone()).ok()?;
    message.results.into_iter().next()?.result
}

/// The codec of the stream: sends [`Outgoing`], receives ordinary messages.
#[derive(Default)]
pub(super) struct StreamCodec(PhantomData<()>);

type Incoming = ProstCodec<StreamTasksRequest, StreamTasksResponse>;

impl Codec for StreamCodec {
    type Encode = Outgoing;
    type Decode = StreamTasksResponse;
    type Encoder = OutgoingEncoder;
    type Decoder = <Incoming as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        OutgoingEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        Incoming::default().decoder()
    }
}

pub(super) struct OutgoingEncoder;

impl Encoder for OutgoingEncoder {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer);
        Ok(())
    }
}

impl Outgoing {
    fn encode(&self, buffer: &mut impl BufMut) {
        self.head.encode_raw(buffer);
        for result in &self.results {
            buffer.put_slice(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PAYLOAD_BYTES_MAX, TaskError, to_payload};

    #[test]
    fn the_encoding_matches_the_protocol_message() {
        let completed = to_payload(&[1, 2, 3]).expect("JSON");
        let failed = TaskError::new("a.b").message("no");
        let token = Bytes::from_static;
        let outgoing = Outgoing {
            head: StreamTasksRequest { credit: 7, draining: true, ..Default::default() },
            results: vec![
                result(token(b"t1"), proto_result(Ok(completed.clone()))),
                result(token(b"t2"), proto_result(Err(failed.clone()))),
            ],
        };
        let mut buffer = BytesMut::new();
        outgoing.encode(&mut buffer);
        let decoded = StreamTasksRequest::decode(buffer.freeze()).expect("a message");
        let expected = [
            (token(b"t1"), task_result::Result::Completed(completed)),
            (token(b"t2"), task_result::Result::Failed(failed.into_proto())),
        ];
        let expected = StreamTasksRequest {
            results: expected
                .map(|(task_token, result)| v1::TaskResult { task_token, result: Some(result) })
                .into(),
            ..outgoing.head
        };
        assert_eq!(decoded, expected);
    }

    #[test]
    fn an_output_over_the_limit_becomes_an_error() {
        let content = v1::payload::Content::Data(vec![0; PAYLOAD_BYTES_MAX + 1].into());
        let output = v1::Payload { content: Some(content), ..Default::default() };
        let task_result::Result::Failed(error) = proto_result(Ok(output)) else {
            panic!("the service would refuse this output");
        };
        assert_eq!(error.r#type, "recoup.payload_too_large");
    }
}
