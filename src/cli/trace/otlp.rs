//! Traces as OpenTelemetry has them: a span for each host that had the message, in one trace, which is the
//! message's id in the mesh. OTLP in its JSON form, a request a line, as the file receivers of collectors
//! read it (opentelemetry-proto 1.x). Nothing is sent.

use postroad_mesh::MeshMessageId;
use serde_json::{Value, json};

use crate::admin::trace::{EventView, TraceView};

/// `SPAN_KIND_CONSUMER`: a host takes a message that another one handed over.
const KIND_CONSUMER: u8 = 5;
/// `STATUS_CODE_OK` and `STATUS_CODE_ERROR`; nothing is said of what is still queued.
const STATUS_OK: u8 = 1;
const STATUS_ERROR: u8 = 2;

/// Returns the request for one message, from what all hosts tell of it.
pub(super) fn request(views: &[&TraceView]) -> Value {
    let trace_id = trace_id(views);
    let spans = |view: &&TraceView| {
        json!({
            "resource": { "attributes": [text("service.name", "postroad"), text("host.name", view.hostname.as_ref().unwrap_or(&view.host))] },
            "scopeSpans": [{
                "scope": { "name": "postroad", "version": env!("CARGO_PKG_VERSION") },
                "spans": [span(&trace_id, view, views)],
            }],
        })
    };
    json!({ "resourceSpans": views.iter().filter(|view| !view.events.is_empty()).map(spans).collect::<Vec<_>>() })
}

fn span(trace_id: &str, view: &TraceView, all: &[&TraceView]) -> Value {
    let at = |event: Option<&EventView>| event.map_or("0".to_owned(), nanos);
    let mut attributes = vec![text("postroad.queue_id", &view.id.to_string())];
    let named = [("messaging.message.id", &view.message_id), ("postroad.reverse_path", &view.from)];
    attributes.extend(named.into_iter().filter_map(|(key, value)| Some(text(key, value.as_deref()?))));
    attributes.extend(view.mesh.iter().map(|mesh| text("postroad.mesh_id", &mesh.id)));
    attributes.extend(view.size.map(|size| number("messaging.message.body.size", size)));
    let mut span = json!({
        "traceId": trace_id,
        "spanId": span_id(view),
        "name": "message",
        "kind": KIND_CONSUMER,
        "startTimeUnixNano": at(view.events.first()),
        "endTimeUnixNano": at(view.events.last()),
        "attributes": attributes,
        "events": view.events.iter().map(event).collect::<Vec<_>>(),
    });
    if let Some(before) = all.iter().find(|before| before.id != view.id && handed(before, view)) {
        span["parentSpanId"] = span_id(before).into();
    }
    let has = |what: &[&str]| view.events.iter().any(|event| what.contains(&event.what.as_str()));
    if has(&["failed", "expired", "bounced", "set_aside"]) {
        span["status"] = json!({ "code": STATUS_ERROR });
    } else if has(&["retired"]) {
        span["status"] = json!({ "code": STATUS_OK });
    }
    span
}

/// Returns whether a host handed the message over to another, by the label that it has in the mesh.
fn handed(before: &TraceView, to: &TraceView) -> bool {
    let label = format!("{} (", to.host);
    before.events.iter().any(|event| {
        event.what == "delivered" && event.remote.as_deref().is_some_and(|remote| remote.starts_with(&label))
    })
}

fn event(event: &EventView) -> Value {
    let mut attributes = vec![text("postroad.recipients", &event.recipients.join(","))];
    let named = [("postroad.remote", &event.remote), ("postroad.reply", &event.reply), ("postroad.by", &event.by)];
    attributes.extend(named.into_iter().filter_map(|(key, value)| Some(text(key, value.as_deref()?))));
    attributes.extend(event.ms.map(|ms| number("postroad.attempt_ms", u64::from(ms))));
    json!({ "timeUnixNano": nanos(event), "name": event.what, "attributes": attributes })
}

/// Sixteen octets: the id in the mesh, the same wherever it is asked for; of a message that has none, its
/// host and queue id.
fn trace_id(views: &[&TraceView]) -> String {
    let known = views.iter().find_map(|view| view.mesh.as_ref()?.id.parse::<MeshMessageId>().ok());
    match (known, views.first()) {
        (Some(id), _) => id.octets().iter().map(|octet| format!("{octet:02x}")).collect(),
        (None, Some(view)) => format!("{:016x}{}", u64::from(crc32fast::hash(view.host.as_bytes())), span_id(view)),
        (None, None) => "0".repeat(32),
    }
}

/// Eight octets: the queue id, told apart from those of other hosts.
fn span_id(view: &TraceView) -> String {
    let host = u64::from(crc32fast::hash(view.host.as_bytes())) << 32;
    format!("{:016x}", (view.id.0.to_u64() ^ host).max(1))
}

/// 64-bit numbers are texts in the JSON form.
fn nanos(event: &EventView) -> String {
    (u128::from(event.at.0.0) * 1_000_000).to_string()
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}
