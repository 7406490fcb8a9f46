#include "sha256.h"

#include <openssl/evp.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

namespace mlpdeploy {

namespace {

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    check(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
  }

  void update(const void* data, std::size_t bytes) { check(EVP_DigestUpdate(context_.get(), data, bytes)); }

  std::string hexadecimal() {
    unsigned char value[EVP_MAX_MD_SIZE];
    unsigned int bytes = 0;
    check(EVP_DigestFinal_ex(context_.get(), value, &bytes));
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < bytes; ++i) {
      text += digits[value[i] >> 4];
      text += digits[value[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;

  static void check(bool fine) {
    if (!fine) throw std::runtime_error("libcrypto has no SHA-256");
  }
};

}  // namespace

std::string sha256_of(std::string_view text) {
  Digest digest;
  digest.update(text.data(), text.size());
  return digest.hexadecimal();
}

std::string sha256_of_file(const std::filesystem::path& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw std::runtime_error("it cannot be opened");
  Digest digest;
  std::vector<char> chunk(std::size_t{1} << 20);
  while (const std::size_t bytes = std::fread(chunk.data(), 1, chunk.size(), file.get())) {
    digest.update(chunk.data(), bytes);
  }
  if (std::ferror(file.get())) throw std::runtime_error("it cannot be read to its end");
  return digest.hexadecimal();
}

}  // namespace mlpdeploy
