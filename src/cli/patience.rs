//! How often and how long mail is tried, in words and for programs: for `check` and `explain`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Patience, Retry, show_duration};

/// Says it in a sentence; `expire` holds where the route has none of its own.
pub fn words(patience: &Patience, expire: Duration) -> String {
    let Retry { first, factor, max } = patience.retry;
    let pauses = if first == max || factor == 1.0 {
        format!("every {}", show_duration(first))
    } else {
        let second = show_duration(first.mul_f64(factor).min(max));
        format!("after {}, {second} and so on up to {}", show_duration(first), show_duration(max))
    };
    let expire = patience.expire.unwrap_or(expire);
    let notice = match patience.delay_notice.filter(|notice| *notice < expire) {
        Some(notice) => format!("the sender hears of it after {}", show_duration(notice)),
        None => "the sender hears nothing of it".to_owned(),
    };
    format!("what is put off is tried again {pauses}; {notice}; it is returned after {}", show_duration(expire))
}

/// The same for programs.
pub fn as_json(patience: &Patience, expire: Duration) -> Value {
    json!({
        "retry_first": show_duration(patience.retry.first),
        "retry_factor": patience.retry.factor,
        "retry_max": show_duration(patience.retry.max),
        "expire": show_duration(patience.expire.unwrap_or(expire)),
        "delay_notice": patience.delay_notice.map(show_duration),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_as_people_would() {
        let seconds = Duration::from_secs;
        let retry = Retry { first: seconds(300), factor: 2.0, max: seconds(14_400) };
        let usual = Patience { retry, expire: None, delay_notice: Some(seconds(14_400)) };
        let day = seconds(86_400);
        assert_eq!(
            words(&usual, 5 * day),
            "what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; \
             it is returned after 5d"
        );
        let steady = Retry { first: seconds(60), factor: 1.0, max: seconds(120) };
        assert_eq!(
            words(&Patience { retry: steady, expire: Some(seconds(3_600)), ..usual }, 5 * day),
            "what is put off is tried again every 1m; the sender hears nothing of it; it is returned after 1h"
        );
        assert_eq!(as_json(&usual, 5 * day)["expire"], "5d");
    }
}
