//! What holds for every byte that clients send to the agent: the judge of the fuzz targets that read requests. What is
//! accepted means one thing only, in whatever pieces it arrives; what is written reads again as what it was.

mod fields;
mod first;
mod routes;
mod wire;

pub use fields::{fields, path};
pub use first::{announced, hello};
pub use routes::routes;
pub use wire::{chunks, head};

/// Choices, made by the bytes of an input; zero where they end.
struct Choices<'d>(&'d [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.byte()) % list.len()]
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Judge = fn(&[u8]);

    const TARGETS: [(&str, Judge); 7] = [
        ("announced", announced),
        ("chunks", chunks),
        ("fields", fields),
        ("head", head),
        ("hello", hello),
        ("path", path),
        ("routes", routes),
    ];

    /// What fuzzing kept: inputs that each reach something of their own; and each of them a little broken.
    #[test]
    fn what_fuzzing_kept_holds() {
        for (target, judge) in TARGETS {
            let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
            let inputs: Vec<_> = std::fs::read_dir(&folder).expect("there is a corpus").collect();
            assert!(inputs.len() >= 20, "{folder} holds {}", inputs.len());
            for input in inputs {
                let input = std::fs::read(input.expect("an input").path()).expect("it can be read");
                judge(&input);
                for at in (0..input.len()).step_by(input.len() / 16 + 1) {
                    let mut broken = input.clone();
                    broken[at] = broken[at].wrapping_add(1);
                    judge(&broken);
                    judge(&input[..at]);
                }
            }
        }
    }
}
