//! Values of eight bytes that are read, written and exchanged as one word.

/// Gives a type of eight plain bytes its form as a word.
macro_rules! one_word {
    ($kind:ty) => {
        impl $kind {
            /// As one word.
            #[inline(always)]
            pub const fn word(self) -> u64 {
                bytemuck::must_cast(self)
            }

            /// From one word.
            #[inline(always)]
            pub const fn from_word(word: u64) -> Self {
                bytemuck::must_cast(word)
            }
        }
    };
}

pub(crate) use one_word;
