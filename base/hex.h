// Bytes as lower-case hexadecimal digits and back.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace tidemark {

std::string to_hex(std::span<const std::byte> bytes);

// Fills `bytes` exactly. False, with `bytes` unspecified, when there are not twice as many digits or one is none.
// Upper-case digits are refused: each value has one spelling.
bool from_hex(std::string_view hex_digits, std::span<std::byte> bytes);

}  // namespace tidemark
