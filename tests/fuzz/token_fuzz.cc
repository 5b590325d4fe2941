// Tokens are typed and pasted by people: whatever comes, decode_token gives a token of one spelling or an error in
// words.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "net/token.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto token = tidemark::net::decode_token(text);
  if (token) {
    TIDEMARK_CHECK(text.find(tidemark::net::encode_token(*token)) != std::string_view::npos);
  } else {
    TIDEMARK_CHECK(!token.error().what.empty());
  }
  return 0;
}
