#include "net/token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace tidemark::net {
namespace {

using testing::HasSubstr;

Token some_token(std::uint64_t seed, std::string address = "staging.example:7443") {
  Random random(seed);
  Token token;
  token.address = std::move(address);
  random.fill(token.ca_sha256);
  random.fill(token.secret);
  return token;
}

TEST(Token, SurvivesBeingWrittenDown) {
  for (std::size_t size = 0; size < 40; ++size) {  // every length of the last base64 group, with one to spare
    const Token token = some_token(size, std::string(size, 'a'));
    const std::string text = encode_token(token);
    EXPECT_TRUE(text.starts_with("tmk1-"));
    EXPECT_EQ(text.find_first_of("+/= "), std::string::npos);
    EXPECT_EQ(decode_token(text).value(), token);
    EXPECT_EQ(decode_token(" " + text + "\r\n").value(), token) << "as it comes out of a clipboard";
  }
}

TEST(Token, SaysWhatIsWrongWithIt) {
  const std::string text = encode_token(some_token(1));
  EXPECT_THAT(decode_token("").error().what, HasSubstr("empty"));
  EXPECT_THAT(decode_token("hunter2").error().what, HasSubstr("not a Tidemark token"));
  EXPECT_EQ(decode_token("tmk2-" + text.substr(5)).error().code, Code::unsupported);
  EXPECT_THAT(decode_token(text + "AAAA").error().what, HasSubstr("added"));
  EXPECT_THAT(decode_token(text.substr(0, 20) + " " + text.substr(20)).error().what, HasSubstr("character 21"));
  EXPECT_THAT(decode_token("tmk1-" + std::string(100'000, 'A')).error().what, HasSubstr("too long"));
  for (std::size_t size = 1; size < text.size(); ++size) {
    EXPECT_THAT(decode_token(text.substr(0, size)).error().what, HasSubstr("cut short")) << size;
  }
}

TEST(Token, EveryMistypedCharacterIsFound) {
  const std::string text = encode_token(some_token(2));
  for (std::size_t at = 5; at < text.size(); ++at) {
    for (const char c : std::string("Ab0-_")) {
      if (text[at] == c) continue;
      std::string mistyped = text;
      mistyped[at] = c;
      EXPECT_FALSE(decode_token(mistyped)) << at << " " << c;
    }
  }
}

}  // namespace
}  // namespace tidemark::net
