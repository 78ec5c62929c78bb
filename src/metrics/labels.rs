//! The labels of metrics whose values are fixed words.

use prometheus_client::encoding::EncodeLabelSet;

/// Sets of labels, all of them fixed words.
macro_rules! labels {
    ($($name:ident { $($label:ident),+ })+) => {
        $(#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name {
            $(pub $label: &'static str,)+
        })+
    };
}

labels! {
    Request { route, status }
    End { route, outcome }
    Route { route }
    Answer { method, reason }
    Kind { kind }
    Refusal { kind, scope }
    Told { answer }
    Reason { reason }
    Outcome { outcome }
    Round { task, outcome }
    Schema { schema }
    Connections { pool }
    Build { version }
}
