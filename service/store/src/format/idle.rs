//! The idle workers that nodes publish. They describe the present moment and are not kept, so they have no
//! format number, and bytes that cannot be read are ignored.

use prost::Message;

use super::wire;
use crate::contract::{IdleCredit, QueueName};

pub fn encode_idle(idle: &[IdleCredit]) -> Vec<u8> {
    let credits = idle.iter().map(|own| wire::IdleCredit {
        queues: own.queues.iter().map(to_wire).collect(),
        task_types: own.task_types.clone(),
        credit: own.credit,
    });
    wire::Idle { credits: credits.collect() }.encode_to_vec()
}

pub fn decode_idle(data: &[u8]) -> Vec<IdleCredit> {
    let published = wire::Idle::decode(data).unwrap_or_default();
    let credits = published.credits.into_iter().map(|own| IdleCredit {
        queues: own.queues.into_iter().map(from_wire).collect(),
        task_types: own.task_types,
        credit: own.credit,
    });
    credits.collect()
}

fn to_wire(name: &QueueName) -> wire::IdleQueue {
    wire::IdleQueue { namespace: name.namespace.to_string(), queue: name.queue.clone() }
}

fn from_wire(name: wire::IdleQueue) -> QueueName {
    QueueName { namespace: name.namespace.as_str().into(), queue: name.queue }
}
