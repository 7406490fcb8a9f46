#include <iostream>
#include <stdexcept>
#include <string>

#include "json.h"

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << mlpdeploy::canonical_json(mlpdeploy::parse_json(line)) << '\n';
    } catch (const std::runtime_error& error) {
      std::cout << "refused: " << error.what() << '\n';
    }
  }
}
